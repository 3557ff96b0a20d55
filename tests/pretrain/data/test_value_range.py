"""More than 8 bits: what is left of them, without what stands for no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from pretrain.data.decode import read_image
from pretrain.data.value_range import range_of


def levels(path: Path, value_range: tuple[float, float] | None = None) -> int:
    return len(np.unique(np.asarray(read_image(path, value_range))[..., 0]))


def test_12_bits_in_16_keep_their_levels(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 200 * 200).astype(np.uint16).reshape(200, 200)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert levels(tmp_path / "x.png") == 256
    assert levels(tmp_path / "x.png", (0, 65535)) == 17


@pytest.mark.parametrize("nothing", [-9999.0, -3.4e38, np.nan, np.inf, -32768.0])
def test_no_data_is_black_and_decides_nothing(tmp_path: Path, nothing: float) -> None:
    values = np.linspace(200, 300, 200 * 200, dtype=np.float32).reshape(200, 200)
    values[:50] = nothing
    Image.fromarray(values).save(tmp_path / "x.tif")
    pixels = np.asarray(read_image(tmp_path / "x.tif"))[..., 0]
    assert (pixels[:50] == 0).all()
    assert levels(tmp_path / "x.tif") == 256
    values[60, 60] = 1e9  # a hot pixel
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert levels(tmp_path / "x.tif") > 250 and np.asarray(read_image(tmp_path / "x.tif"))[60, 60, 0] == 255


def test_the_files_own_value_for_no_data(tmp_path: Path) -> None:
    values = np.linspace(0, 1000, 100 * 100).astype(np.uint16).reshape(100, 100)
    values[:20] = 60000
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "60000"
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo=tags)
    pixels = np.asarray(read_image(tmp_path / "x.tif"))[..., 0]
    assert (pixels[:20] == 0).all() and pixels.max() == 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(60000, dtype=np.uint16), (0, 65535)),
        (np.arange(256, dtype=np.uint16), (0, 255)),
        (np.linspace(0, 0.9, 1000), (0, 1)),
        (np.linspace(0, 200, 1000), (0, 255)),
        (np.full(9, 771, np.uint16), (0, 65535)),
        (np.full(9, 0.25), (0, 1)),
        (np.full(9, -5.0), (-5, 1)),
        (np.array([]), (0, 1)),
    ],
)
def test_customary_ranges_are_taken_for_what_they_are(values: np.ndarray, expected: tuple[float, float]) -> None:
    assert range_of(values) == expected


def test_other_data_are_spread_by_percentiles() -> None:
    assert range_of(np.linspace(0, 0.1, 10_001)) == pytest.approx((0.0001, 0.0999), abs=1e-6)
    assert range_of(np.arange(1000, 3000).astype(np.uint16)) == pytest.approx((1002, 2997), abs=1)
