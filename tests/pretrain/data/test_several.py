"""Several places of images as one list."""

from pathlib import Path

import pytest

from pretrain.data.several import open_sources
from pretrain.data.sources import open_source
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import touch


def test_places_become_one_sorted_list(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "unlabelled/b.png",
        "unlabelled/sub/a.jpg",
        "labelled/train/c.png",
        "labelled/val/d.png",
        "other/e.png",
    )
    found = open_sources([str(tmp_path / "unlabelled"), str(tmp_path / "labelled")])
    assert found.root == tmp_path
    assert found.names == ["labelled/train/c.png", "unlabelled/b.png", "unlabelled/sub/a.jpg"], "never the val images"
    assert all(found.path(name).is_file() for name in found.names)
    described = found.describe()
    assert described.startswith(f"3 images in {tmp_path} (2 in {tmp_path / 'unlabelled'}, image folder; 1 in ")


def test_one_place_is_what_it_is_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b/c.png")
    assert open_sources([str(tmp_path)]) == open_source(tmp_path)


def test_an_image_of_two_places_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b/c.png")
    (tmp_path / "list.txt").write_text(f"a.png\n{tmp_path / 'b' / 'c.png'}\n")
    places = [str(tmp_path), str(tmp_path / "b"), str(tmp_path / "list.txt")]
    assert open_sources(places).names == ["a.png", "b/c.png"]


def test_names_do_not_depend_on_where_the_places_lie_together(tmp_path: Path) -> None:
    found = []
    for home in ("here", "there/below"):
        root = tmp_path / home
        touch(root, "one/a.png", "two/b.png")
        found.append(open_sources([str(root / "one"), str(root / "two")]))
    assert found[0].names == found[1].names == ["one/a.png", "two/b.png"]
    assert found[0].fingerprint() == found[1].fingerprint()


def test_relative_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "work/one/a.png", "two/b.png")
    monkeypatch.chdir(tmp_path / "work")
    found = open_sources(["one", "../two"])
    assert (found.root, found.names) == (tmp_path, ["two/b.png", "work/one/a.png"])


def test_each_place_is_checked(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.png")
    with pytest.raises(UserError, match="--data .*two.* does not exist"):
        open_sources([str(tmp_path / "one"), str(tmp_path / "two")])
    with pytest.raises(UserError, match="--images goes with a single --data"):
        open_sources([str(tmp_path / "one"), str(tmp_path / "one")], str(tmp_path))
    touch(tmp_path, "two/b.jpg")
    found = open_sources([str(tmp_path / "one"), str(tmp_path / "two")], include=["*.jpg"])
    assert found.names == ["b.jpg"] and any("leaves none of the 1 images in" in note for note in found.notes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in .*/empty"):
        open_sources([str(tmp_path / "one"), str(tmp_path / "empty")], exclude=["*.jpg"])
    with pytest.raises(UserError, match="--include"):
        open_sources([str(tmp_path / "one"), str(tmp_path / "one")], include=["*.jpg"])
