"""One range of values for the images of a data set, said and recorded by the tool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.deep_images import choose_range, range_of_images
from pretrain.data.sources import ImageList, open_source
from tests.helpers.pretrain_tool import OPTIONS, error_of, run


def deep_folder(root: Path) -> Path:
    root.mkdir()
    for number in range(16):
        values = np.linspace(0, 100 * (number + 1), 40 * 40).astype(np.uint16).reshape(40, 40)
        Image.fromarray(values).save(root / f"{number:02d}.png")
    return root


def test_one_range_for_the_data_set(tmp_path: Path) -> None:
    source = open_source(deep_folder(tmp_path / "deep"))
    found = range_of_images(source)
    assert found is not None
    (low, high), num_levels, count, flat = found
    assert not flat
    assert low == pytest.approx(0, abs=2) and 1400 < high <= 1600 and num_levels > 250 and count == 16
    dark = ImageList(source.root, source.names, value_range=(low, high)).decode(0)
    assert np.asarray(dark).max() < 25  # by itself it would reach 255
    assert range_of_images(source, (0, 100)) == ((0, 100), 101, 16, [])
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    assert range_of_images(ImageList(tmp_path, ["x.png"])) is None


def test_images_of_which_one_range_leaves_nothing_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Floats in 0 to 1 and 12 bits beside 16: by the range of all, the first is black."""
    for name, most in (("float.tif", 1.0), ("twelve.png", 4095), ("sixteen.png", 65535)):
        values = np.linspace(0, most, 1600).reshape(40, 40)
        Image.fromarray(values.astype(np.float32 if name == "float.tif" else np.uint16)).save(tmp_path / name)
    Image.fromarray(np.full((9, 9), 3, np.uint16)).save(tmp_path / "constant.png")  # flat as it is
    source = open_source(tmp_path)
    found = range_of_images(source)
    assert found is not None and found.flat == ["float.tif"] and found.num_deep == 4
    choose_range(source)
    assert "of 1 of them fewer than 8 levels are left (float.tif)" in caplog.text


def test_a_border_or_a_channel_does_not_stand_for_all(tmp_path: Path) -> None:
    """The first column is dark, and every third file another channel: no every n-th value or image shows that."""
    rng = np.random.default_rng(1)
    for number in range(192):
        values = rng.normal(1200 if number % 3 == 0 else 3000, 30, (50, 2000))
        values[:, 0] = 0
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"{number // 3:03d}_w{number % 3}.png")
    found = range_of_images(open_source(tmp_path))
    assert found is not None
    (low, high), _, count, _ = found
    assert 1000 < low < 1200 and 3000 < high < 3200 and count == 64


def test_the_tool_says_and_records_it(tmp_path: Path) -> None:
    data, output = deep_folder(tmp_path / "deep"), tmp_path / "run"
    words = ["--data", data, "--output", output, *OPTIONS, "--steps", 1]
    result = run(*words)
    assert result.returncode == 0, result.stderr
    assert "warning: 16 of 16 images looked at have more than 8 bits: values from" in result.stderr
    low, high = json.loads((output / "config.json").read_text())["data"]["value_range"]
    assert low < high
    assert run(*words, "--resume").returncode == 0
    assert "value_range" in error_of(run(*words, "--resume", "--range", "0,65535"))
    assert "--range" in error_of(run(*words[:3], tmp_path / "x", *OPTIONS, "--range", "5,1"))
    given = run(*words[:3], tmp_path / "given", *OPTIONS, "--steps", 1, "--range", "0,500")
    assert "values from 0 to 500 become" in given.stderr
