"""Augmentation: torchvision's crops, the same bytes whatever runs beside, any image size."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import PretrainAugment, crop_box, draw_colours, three_augment
from splitmask_backbones.errors import UserError
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD


def photo(height: int = 90, width: int = 120) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([127 + 127 * np.sin(x / 9), 127 + 127 * np.cos(y / 7), 255 * (x + y) / (height + width)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (10000, 3), (3, 10000), (2, 2), (120, 90), (31, 17)])
def test_any_image_size(size, strong):
    augment = PretrainAugment(32, strong=strong)
    for seed in range(20):
        out = augment(photo(size[1], size[0]), rng(seed))
        assert out.shape == (3, 32, 32)
        assert out.dtype == torch.uint8
        assert out.is_contiguous()


def test_pixels_equal_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    augment = PretrainAugment(48, flip=0.0)
    for seed in range(20):
        left, top, width, height = crop_box(120, 90, augment.scale, augment.ratio, rng(seed))
        bicubic = functional.InterpolationMode.BICUBIC
        expected = functional.resized_crop(photo(), top, left, height, width, [48, 48], bicubic)
        expected = torch.from_numpy(np.asarray(expected).transpose(2, 0, 1).copy())
        torch.testing.assert_close(augment(photo(), rng(seed)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(120, 90), (60, 200), (300, 40)])
def test_boxes_are_distributed_as_torchvisions(size):
    transforms = pytest.importorskip("torchvision.transforms")
    width, height = size
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    generator = rng(0)
    ours = np.array([crop_box(width, height, scale, ratio, generator) for _ in range(4000)], dtype=float)
    torch.manual_seed(0)
    image = Image.new("RGB", size)
    theirs = [transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in theirs], dtype=float)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    for column, extent in enumerate((width, height, width, height)):
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            difference = abs(np.quantile(ours[:, column], share) - np.quantile(theirs[:, column], share))
            assert difference <= 0.04 * extent + 1, (column, share)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 3), (498, 0, 4, 3)), ((3, 1000), (0, 498, 3, 4)), ((1, 1), (0, 0, 1, 1)), ((1, 9), (0, 4, 1, 1))],
)
def test_fallback_is_the_largest_centred_box(size, box):
    """No crop of at least 90 % of the area has an allowed ratio here: all ten tries fail."""
    assert crop_box(*size, (0.9, 1.0), (3 / 4, 4 / 3), rng()) == box


def test_whole_image_without_change():
    augment = PretrainAugment(64, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    image = photo(64, 64)
    np.testing.assert_array_equal(augment(image, rng()).numpy(), np.asarray(image).transpose(2, 0, 1))
    flipped = PretrainAugment(64, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)(image, rng())
    np.testing.assert_array_equal(flipped.numpy(), np.asarray(image).transpose(2, 0, 1)[..., ::-1])


def test_flip_probability():
    augment = PretrainAugment(8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.3)
    image = photo(8, 8)
    plain = np.asarray(image).transpose(2, 0, 1)
    generator = rng(1)
    share = np.mean([not np.array_equal(augment(image, generator).numpy(), plain) for _ in range(2000)])
    assert abs(share - 0.3) < 0.05


@pytest.mark.parametrize("strong", [False, True])
def test_only_the_given_generator_counts(strong):
    """Neither torch's or numpy's global state nor the number of threads changes a byte."""
    augment = PretrainAugment(64, strong=strong)
    reference = [augment(photo(), rng(seed)) for seed in range(10)]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            np.random.seed(count)  # noqa: NPY002
            for seed in range(10):
                assert torch.equal(augment(photo(), rng(seed)), reference[seed])
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(reference[0], reference[1])


def test_the_image_given_is_not_changed():
    image = photo()
    before = image.tobytes()
    for seed in range(5):
        PretrainAugment(32, strong=True)(image, rng(seed))
    assert image.tobytes() == before


def test_strong_keeps_the_crop():
    """The colour changes draw after the geometry: a grey-scale result is the grey-scale of the weak crop."""
    weak, strong = PretrainAugment(32), PretrainAugment(32, strong=True)
    num_grey = 0
    for seed in range(60):
        a, b = weak(photo(), rng(seed)).float(), strong(photo(), rng(seed)).float()
        if (b[0] == b[1]).all() and (b[1] == b[2]).all():  # the grey-scale third
            num_grey += 1
            grey = (a * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
            correlation = torch.corrcoef(torch.stack([grey.ravel(), b[0].ravel()]))[0, 1]
            assert correlation > 0.98
    assert 8 <= num_grey <= 34


def test_three_augment_takes_each_of_the_three(monkeypatch):
    """Without jitter, each result is exactly one of grey-scale, solarisation and blur, about as often."""
    from PIL import ImageFilter, ImageOps

    monkeypatch.setattr("pretrain.data.augment.JITTER", [_Keep] * 3)
    image = photo()
    grey = image.convert("L").convert("RGB").tobytes()
    solarised = ImageOps.solarize(image, 128).tobytes()
    counts = {"grey": 0, "solarised": 0, "blurred": 0}
    for seed in range(300):
        out = three_augment(image, draw_colours(rng(seed))).tobytes()
        if out == grey:
            counts["grey"] += 1
        elif out == solarised:
            counts["solarised"] += 1
        else:
            generator = rng(seed)
            generator.integers(3)
            blurred = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
            assert out == blurred.tobytes()
            counts["blurred"] += 1
    assert min(counts.values()) > 70


class _Keep:
    def __init__(self, image):
        self.image = image

    def enhance(self, factor):
        assert 0.7 <= factor <= 1.3
        return self.image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"flip": 1.5}, "flip"),
        ({"img_size": 0}, "img_size"),
    ],
)
def test_unusable_settings(options, message):
    with pytest.raises(UserError, match=message):
        PretrainAugment(**{"img_size": 32, **options})


def test_pixel_statistics_are_timms():
    constants = pytest.importorskip("timm.data.constants")
    assert constants.IMAGENET_DEFAULT_MEAN == IMAGENET_MEAN
    assert constants.IMAGENET_DEFAULT_STD == IMAGENET_STD


def test_colours_are_drawn_from_the_whole_of_their_ranges():
    drawn = [draw_colours(rng(seed)) for seed in range(500)]
    factors, radii = np.array([one.factors for one in drawn]), np.array([one.radius for one in drawn])
    assert ((factors.min(0) >= 0.7) & (factors.min(0) < 0.72)).all() and abs(factors.mean() - 1) < 0.02
    assert ((factors.max(0) <= 1.3) & (factors.max(0) > 1.28)).all()
    assert 0.1 <= radii.min() < 0.15 and 1.95 < radii.max() <= 2
