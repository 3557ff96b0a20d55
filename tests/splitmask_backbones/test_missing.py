"""What is said of a path that is not there names the place where it ends, and what is there."""

import os

import pytest

from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_file, check_folder, check_path, check_weights


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "list.txt").write_text("a.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("image/train", r"image/train does not exist: in .* there is no 'image', did you mean 'images'\?"),
        ("images/trian", r"in .*/images there is no 'trian', did you mean 'train'\?; it holds list.txt, train$"),
        ("images/coco", r"in .*/images there is no 'coco'; it holds list.txt, train$"),
        ("images/list.txt/a", r"/images/list.txt is a file$"),
        ("empty/a/b", r"the folder .*/empty is empty, check the path$"),
    ],
)
def test_a_missing_path_is_told_by_where_it_ends(root, path, said):
    for check in (check_path, check_file, check_folder, check_weights):
        with pytest.raises(UserError, match=said):
            check(root / path, "--data")


def test_an_empty_path_is_not_the_current_folder():
    for check in (check_path, check_file, check_folder, check_weights):
        for nothing in ("", "  "):
            with pytest.raises(UserError, match=r"^--data is empty: name a file or folder$"):
                check(nothing, "--data")


def test_the_other_kind_is_told(root):
    with pytest.raises(UserError, match=r"^--list .*/images is not a file: it is a folder, name a file$"):
        check_file(root / "images", "--list")
    with pytest.raises(UserError, match=r"^--data .*list.txt is not a folder: name a folder$"):
        check_folder(root / "images/list.txt", "--data")
    with pytest.raises(UserError, match=r"^weights file .*images is not a file: name the encoder.safetensors in it"):
        check_weights(root / "images")
    with pytest.raises(UserError, match=r"^--data .* cannot be opened: File name too long$"):
        check_path(root / ("a" * 300), "--data")


def test_of_many_names_none_is_told_that_is_not_alike(root):
    for number in range(13):
        (root / f"images/{number}.jpg").touch()
    with pytest.raises(UserError, match="in .*/images there is no 'coco', check the path$"):
        check_path(root / "images/coco", "--data")
    with pytest.raises(UserError, match=r"there is no '11.jpeg', did you mean '11.jpg'\?$"):
        check_path(root / "images/11.jpeg", "--data")


def test_what_is_there_comes_back_with_the_home_resolved(root):
    assert check_path("~/images", "--data") == root / "images" == check_folder("~/images", "--data")
    assert check_file("~/images/list.txt", "--list") == root / "images/list.txt" == check_weights("~/images/list.txt")


def test_weights_of_a_run_that_goes_on_are_told_from_a_wrong_path(root):
    (root / "runs/mine/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="the run in .*/runs/mine has not written it: end a pre-training"):
        check_weights(root / "runs/mine/encoder.safetensors")
    (root / "runs/mine/encoder.safetensors").touch()
    with pytest.raises(UserError, match=r"there is no 'encoder.safetensor', did you mean 'encoder.safetensors'\?"):
        check_weights(root / "runs/mine/encoder.safetensor")


def test_a_link_to_nowhere_is_told_as_one(root):
    (root / "disk").symlink_to("/not/mounted")
    for path in ("disk", "disk/images/train"):
        with pytest.raises(UserError, match=r"/disk is a link to /not/mounted, which is not there$"):
            check_path(root / path, "--data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_does_no_harm(root):
    (root / "empty").chmod(0o300)
    with pytest.raises(UserError, match="check the path"):
        check_path(root / "empty/a", "--data")
