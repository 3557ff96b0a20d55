"""Lists and layouts on disk: what is read from a line, and which layout files show."""

from pathlib import Path

import pytest

from pretrain.data.lists import read_lines
from tools.classification.cars import has_cars, read_cars
from tools.classification.layouts import find_layout, read_pairs


def test_lines_are_read_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# head\n\n a.jpg 1 \r\nb c.jpg,2\n")
    assert read_lines(tmp_path / "list.txt") == [(3, "a.jpg 1"), (4, "b c.jpg,2")]
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="is empty"):
        read_lines(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="does not exist: did you mean 'list.txt'"):
        read_lines(tmp_path / "lst.txt")


def test_a_line_is_a_path_and_a_label(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text('path label\n../img/a b.jpg cat\n"../img/c.jpg",dog\n')
    assert read_pairs(tmp_path / "lists/train.txt", tmp_path) == [("img/a b.jpg", "cat"), ("img/c.jpg", "dog")]
    (tmp_path / "lists/bad.txt").write_text("a.jpg 1\nalone\n")
    with pytest.raises(ValueError, match=r"line 2: 'alone' is not `path label`"):
        read_pairs(tmp_path / "lists/bad.txt", tmp_path)


def test_files_show_their_layout(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert find_layout(tmp_path, None) == "folder" and find_layout(tmp_path, "list") == "list"
    (tmp_path / "train.txt").write_text("a.jpg 1\n")
    with pytest.raises(ValueError, match="could be list or folder"):
        find_layout(tmp_path, None)


def test_cars_without_labels_say_which_file_is_missing(tmp_path: Path) -> None:
    assert not has_cars(tmp_path)
    with pytest.raises(ValueError, match=r"has no devkit/cars_train_annos\.mat"):
        read_cars(tmp_path, ("train",))
    (tmp_path / "devkit").mkdir()
    (tmp_path / "devkit/cars_train_annos.mat").write_bytes(b"no MATLAB file")
    assert has_cars(tmp_path)
    pytest.importorskip("scipy", reason="SciPy is not installed")
    with pytest.raises(ValueError, match="cannot be read"):
        read_cars(tmp_path, ("train",))
