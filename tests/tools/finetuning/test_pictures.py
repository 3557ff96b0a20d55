"""Pictures to predict: found, read, and drawings that do not overwrite each other."""

import json

import pytest
from PIL import Image

from tools.finetuning.pictures import open_pictures


def test_names_that_would_fall_together_keep_their_suffix(tmp_path, caplog):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (5, 4)), ("a.jpg", (6, 3)), ("a.jpg.jpg", (8, 1)), ("more/b.png", (7, 2))):
        Image.new("RGB", size).save(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("text")
    pictures = open_pictures(folder, tmp_path / "out")
    assert pictures.images.names == ["a.jpg", "a.jpg.jpg", "a.png", "more/b.png"]
    assert pictures.sizes == [(3, 6), (1, 8), (4, 5), (2, 7)]
    assert f"unreadable image {folder / 'bad.png'}" in caplog.text
    for index in range(4):
        pictures.save(index, Image.new("RGB", (1 + index, 1)))
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert written == {"a.jpg.png", "a.jpg.jpg.png", "a.png.png", "more/b.png"}
    pictures.found["a.jpg"] = [1.0]
    pictures.write()
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == {"a.jpg": [1.0]}


def test_one_picture_and_none(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    assert open_pictures(tmp_path / "a.png", tmp_path).images.names == ["a.png"]
    with pytest.raises(ValueError, match="bad.png cannot be read"):
        open_pictures(tmp_path / "bad.png", tmp_path)
    with pytest.raises(ValueError, match=r"--predict: no image in .*empty"):
        open_pictures(tmp_path / "empty", tmp_path)
