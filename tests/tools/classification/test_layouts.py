"""Lists and layouts on disk: what is read from a line, and which layout files show."""

from pathlib import Path

import pytest

from pretrain.data.lists import read_lines
from tools.classification.cars import has_cars, read_cars
from tools.classification.layouts import find_layout, read_folder, read_pairs


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("filename,label\na 1.jpg,golden retriever\nsub/b.jpg,cat\n", ["golden retriever", "cat"]),
        ('"a 1.jpg";"golden retriever"\n"sub/b.jpg";"cat"\n', ["golden retriever", "cat"]),
        ("a 1.jpg\tgolden retriever\nsub/b.jpg\tcat, wild\n", ["golden retriever", "cat, wild"]),
        ("a 1.jpg dog\nsub\\b.jpg cat\n", ["dog", "cat"]),
        ("image label\na 1.jpg   3\nsub\\b.jpg\t4\n", ["3", "4"]),
    ],
)
def test_lists_as_spreadsheets_and_windows_write_them(tmp_path, text, labels):
    """`a.jpg,golden retriever` was the image `a.jpg,golden` of class `retriever`."""
    (tmp_path / "sub").mkdir()
    for name in ("a 1.jpg", "sub/b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train.txt").write_text(text)
    pairs = read_pairs(tmp_path / "train.txt", tmp_path)
    assert pairs == [("a 1.jpg", labels[0]), ("sub/b.jpg", labels[1])]


def test_a_class_called_target_is_no_header(tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("1.png target\n2.png clutter\n")
    assert read_pairs(tmp_path / "list.txt", tmp_path) == [("1.png", "target"), ("2.png", "clutter")]
    (tmp_path / "head.txt").write_text("image target\n1.png target\n")
    assert read_pairs(tmp_path / "head.txt", tmp_path) == [("1.png", "target")]


def test_class_folders_without_an_image_and_other_suffixes_are_noted(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/1.heic", "train/ant/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    listing = read_folder(tmp_path, ("train",), None)
    assert listing.notes == [
        "train: 1 other files skipped (suffixes found: .heic)",
        "train: no image in 1 class folders, dog for one: no class",
    ]


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
