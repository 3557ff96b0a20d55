"""Pictures to look at: spread evenly, readable ones, shown as the runs see them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.common.plots import save_grid
from tools.running.pictures import as_seen, choose_pictures, copy_numbered


def test_pictures_are_spread_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert choose_pictures(folder, 3) == []
    folder.mkdir()
    assert choose_pictures(folder, 3) == []
    for number in range(9):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    assert [file.name for file in choose_pictures(folder, 3)] == ["0.png", "3.png", "6.png"]
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    for name in ("6.png", "7.png", "8.png"):
        (folder / name).write_bytes(b"no image")
    assert [file.name for file in choose_pictures(folder, 3)] == ["0.png", "4.png"]
    assert len(choose_pictures(folder, 20)) == 5


def test_pictures_are_shown_as_the_run_sees_them(tmp_path: Path) -> None:
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "0.jpg", exif=exif)
    Image.fromarray(np.full((8, 8), 2500, np.uint16)).save(tmp_path / "1.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "2.png")
    (tmp_path / "config.json").write_text(json.dumps({"data": {"value_range": [500.0, 4500.0]}}))
    upright, deep, transparent = as_seen(tmp_path, [tmp_path / name for name in ("0.jpg", "1.png", "2.png")])
    assert upright.size == (40, 60)
    assert deep.getpixel((0, 0)) in ((127,) * 3, (128,) * 3), "half-way through the range of the run"
    assert transparent.getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2.png cannot be read"):
        as_seen(tmp_path, [tmp_path / "2.png"])


def test_what_has_been_drawn_stays_under_its_number(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jpg", tmp_path / "second.png"
    Image.new("RGB", (8, 8)).save(first)
    Image.new("RGB", (9, 9)).save(second)
    folder = tmp_path / "images"
    assert copy_numbered([first], folder) == [folder / "0.jpg"]
    assert copy_numbered([second, first], folder) == [folder / "0.jpg", folder / "1.jpg"]
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "1.jpg"]


def test_a_column_is_as_wide_as_its_title(tmp_path: Path) -> None:
    narrow = Image.new("RGB", (10, 240), "black")
    save_grid({"a": [narrow], "a much longer title than that": [narrow]}, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        head = np.asarray(picture.convert("L"))[:30]
    inked = np.flatnonzero((head < 128).any(axis=0))
    assert len(inked) and inked[-1] < head.shape[1] - 6, "it ends before the border"
