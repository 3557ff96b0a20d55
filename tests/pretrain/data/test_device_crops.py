"""Crops resampled a batch at once, against Pillow: the same bytes."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data import device_crops
from pretrain.data.augment import crop_box
from pretrain.data.device_crops import FLIPPED, HEIGHT, OFFSET, STRIDE, WIDTH, resample, tall_first, weights
from tests.helpers.image_files import smooth
from tests.helpers.paths import SHARED_DATA

KINDS = ("photo", "noise", "black and white")


def picture(kind: str, rng: np.random.Generator) -> np.ndarray:
    height, width = (int(side) for side in rng.integers(1, 260, 2))
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "black and white":  # overshoots everywhere: what is not clamped between the passes shows
        return rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    files = sorted((SHARED_DATA / "coco_tiny/train2017").glob("*.jpg")) if SHARED_DATA.exists() else []
    if not files:
        return smooth(height, width)
    return np.asarray(Image.open(files[int(rng.integers(len(files)))]).convert("RGB").reduce(2))


def boxes_of(pictures: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Two boxes in each: one of any form, and the whole picture."""
    table, offset = [], 0
    for pixels in pictures:
        height, width = pixels.shape[:2]
        for scale in ((0.001, 1.0), (1.0, 1.0)):
            left, top, box_width, box_height = crop_box(width, height, scale, (0.1, 10), rng)
            table.append((offset + top * width + left, width, box_height, box_width, rng.integers(2)))
        offset += height * width
    return np.array(table, dtype=np.int64)


def by_pillow(flat: np.ndarray, row: np.ndarray, size: int) -> np.ndarray:
    y, x = np.mgrid[: row[HEIGHT], : row[WIDTH]]
    crop = Image.fromarray(flat[row[OFFSET] + y * row[STRIDE] + x]).resize((size, size), Image.Resampling.BICUBIC)
    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if row[FLIPPED] else crop
    return np.asarray(crop).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 96])
def test_the_bytes_are_pillows(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enlarged and made smaller, oblong, flipped, of one pixel: not a value differs."""
    rng = np.random.default_rng(size)
    pictures = [picture(kind, rng) for _ in range(12)] + [picture("noise", rng)[:1, :1], picture("noise", rng)[:, :1]]
    flat = np.concatenate([pixels.reshape(-1, 3) for pixels in pictures])
    table = boxes_of(pictures, rng)
    scales = table[:, [HEIGHT, WIDTH]] / size
    assert scales.min() < 0.2 and scales.max() > 2 and set(table[:, FLIPPED]) == {0, 1}
    expected = np.stack([by_pillow(flat, row, size) for row in table])
    found = resample(torch.from_numpy(flat), table, size)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), expected)
    monkeypatch.setattr(device_crops, "_PIXELS_AT_ONCE", 1)  # each by itself
    assert torch.equal(resample(torch.from_numpy(flat), table, size), found)


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_a_card_makes_pillows_bytes(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To one level in all but one value in 100,000: no card has shown yet that it adds whole numbers exactly."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    rng = np.random.default_rng(0)
    pictures = [picture(KINDS[number % 3], rng) for number in range(24)]
    flat = np.concatenate([pixels.reshape(-1, 3) for pixels in pictures])
    table = boxes_of(pictures, rng)
    found = resample(torch.from_numpy(flat).cuda(), table, 96).cpu().numpy().astype(int)
    away = np.abs(found - np.stack([by_pillow(flat, row, 96) for row in table]))
    assert away.max() <= 1 and (away > 0).mean() < 1e-5


def test_a_crop_does_not_see_what_lies_beside_its_box() -> None:
    pixels = np.full((40, 50, 3), 255, np.uint8)
    pixels[10:30, 20:40] = 7
    table = np.array([[10 * 50 + 20, 50, 20, 20, 0]])
    assert resample(torch.from_numpy(pixels.reshape(-1, 3)), table, 16).unique().tolist() == [7]


def test_tall_boxes_go_the_way_of_the_installed_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the passes shows in the bytes, and decides only where the height shrinks by far more."""
    flat = np.random.default_rng(0).integers(0, 2, (90 * 20, 3), dtype=np.uint8) * 255
    tall, wide = np.array([[0, 20, 90, 20, 0]]), np.array([[0, 90, 20, 90, 0]])
    ours = {name: resample(torch.from_numpy(flat), table, 16) for name, table in (("tall", tall), ("wide", wide))}
    assert np.array_equal(ours["tall"][0], by_pillow(flat, tall[0], 16))
    assert tall_first() == (tuple(map(int, Image.__version__.split(".")[:1])) >= (13,))
    monkeypatch.setattr(device_crops, "tall_first", lambda: not tall_first())
    assert not torch.equal(resample(torch.from_numpy(flat), tall, 16), ours["tall"])
    assert torch.equal(resample(torch.from_numpy(flat), wide, 16), ours["wide"])


def test_half_weights_are_whole_numbers_that_tf32_holds() -> None:
    matrices = weights(torch.tensor([256, 7, 33]), 32, 256)
    assert torch.equal(matrices, matrices.round()) and matrices.abs().max() <= 2048
    high, low = matrices.double().unbind(2)
    sums = (4096 * high + low).sum(1) / 2**22
    assert (sums - 1).abs().max() < 1e-5  # each row of weights adds up to 1
    # 255 times the sum of a half's weights stays below what float32 counts in ones.
    assert 255 * matrices.abs().sum(1).max() < 2**24
