"""JPEGs decoded in part: only where the crop has pixels to spare, and close to what the whole image gives."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import PretrainAugment
from pretrain.data.reduced_jpeg import ReducedImage
from pretrain.data.sources import ImageList
from tests.helpers.image_files import smooth


@pytest.fixture
def images(tmp_path) -> ImageList:
    picture = Image.fromarray(smooth(333, 517))
    picture.save(tmp_path / "plain.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    picture.convert("L").save(tmp_path / "gray.jpg", quality=95)
    picture.save(tmp_path / "lossless.png")
    return ImageList(tmp_path, sorted(path.name for path in tmp_path.iterdir()))


@pytest.fixture
def reductions(monkeypatch) -> list[int]:
    """The reductions that were asked for."""
    seen: list[int] = []
    real = ImageList.decode_reduced

    def decode_reduced(self: ImageList, index: int, reduction: int) -> Image.Image:
        seen.append(reduction)
        return real(self, index, reduction)

    monkeypatch.setattr(ImageList, "decode_reduced", decode_reduced)
    return seen


@pytest.mark.parametrize("name", ["plain.jpg", "turned.jpg", "cmyk.jpg", "gray.jpg", "lossless.png"])
def test_crops_are_close_to_those_of_the_whole_image(name, images, reductions) -> None:
    index, augment = images.names.index(name), PretrainAugment(32)
    whole = images.decode(index)
    for seed in range(20):
        one, two = np.random.default_rng(seed), np.random.default_rng(seed)
        found, expected = augment(ReducedImage(images, index, 32), one), augment(whole, two)  # type: ignore[arg-type]
        assert found.shape == (3, 32, 32)
        assert (found.float() - expected.float()).abs().mean() < 4
        assert one.random() == two.random()
        if name.endswith("png"):
            assert torch.equal(found, expected)
    assert {2, 4, 8} >= set(reductions) >= {4}


@pytest.mark.parametrize(("side", "expected"), [(300, []), (166, [2]), (84, [2]), (83, [4]), (41, [8]), (20, [8])])
def test_the_box_keeps_at_least_the_pixels_of_the_crop(side, expected, images, reductions) -> None:
    index = images.names.index("plain.jpg")
    reduced = ReducedImage(images, index, side)
    assert (reduced.width, reduced.height) == (517, 333)
    crop = reduced.crop((0, 0, 517, 333))
    assert reductions == expected and min(crop.size) >= side
    factor = (expected or [1])[0]
    assert crop.size == (-(-517 // factor), -(-333 // factor))
    if not expected:
        assert crop.tobytes() == images.decode(index).tobytes()


def test_an_image_that_vanishes_is_named(images) -> None:
    reduced = ReducedImage(images, 0, 20)
    images.path(images.names[0]).unlink()
    for call in (lambda: reduced.crop((0, 0, 300, 300)), lambda: ReducedImage(images, 0, 20)):
        with pytest.raises(ValueError, match="could be read when the run started"):
            call()
