"""Text lists: names relative to where the images lie, and lines that are wrong."""

import pytest

from pretrain.data.lists import read_text_list
from pretrain.data.sources import open_source
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import touch


def test_text_list(tmp_path):
    touch(tmp_path, "b.jpg", "sub/a.jpg", "ä.jpg", "#1.jpg")
    text = f"\ufeff# my images\r\n#1.jpg\r\nb.jpg\r\n\r\n  sub/a.jpg  \r\n{tmp_path}/ä.jpg\r\n./b.jpg"
    (tmp_path / "list.txt").write_bytes(text.encode())
    source = open_source(tmp_path / "list.txt")
    assert source.names == ["#1.jpg", "b.jpg", "sub/a.jpg", "ä.jpg"]
    assert source.root == tmp_path
    assert "1 repeated lines skipped" in source.describe()


def test_text_list_elsewhere_gives_the_same_names(tmp_path):
    for place in ("one", "two"):
        touch(tmp_path / place, "images/x/a.jpg", "images/y/b.jpg")
        (tmp_path / place / "lists").mkdir()
        (tmp_path / place / "lists/all.txt").write_text("../images/y/b.jpg\n../images/x/a.jpg\n")
    one, two = open_source(tmp_path / "one/lists/all.txt"), open_source(tmp_path / "two/lists/all.txt")
    assert one.names == ["x/a.jpg", "y/b.jpg"]
    assert one.root == tmp_path / "one/images"
    assert one.fingerprint() == two.fingerprint()


def test_relative_list(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.jpg")
    (tmp_path / "in/list").write_text("a.jpg\n")
    monkeypatch.chdir(tmp_path)
    source = open_source("in/list")
    assert [source.path(name).read_bytes() for name in source.names] == [b"content of in/a.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n\ngone.jpg\nlost.jpg\n", r"line 3: gone\.jpg does not exist \(and 1 more lines\)"),
        ("a.jpg\nsub\n", "line 2: sub is a folder"),
        ("# nothing\n\n", "names no image"),
        ("", "names no image"),
        ("a.jpg\0", "neither an image folder nor"),
    ],
)
def test_text_list_errors(tmp_path, text, message):
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "list.txt")


def test_what_is_read_from_a_list(tmp_path):
    touch(tmp_path, "lists/all.txt", "x/b.jpg", "x/a.jpg")
    (tmp_path / "lists/all.txt").write_text("../x/b.jpg\n../x/a.jpg\n../x/b.jpg\n")
    assert read_text_list(tmp_path / "lists/all.txt") == (
        tmp_path / "x",
        ["a.jpg", "b.jpg"],
        ("1 repeated lines skipped",),
    )
