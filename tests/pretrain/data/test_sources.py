"""Sources: recognised by what the path is, sorted, independent of where the data lies, never the evaluation images."""

import os
import shutil

import pytest

from pretrain.data.check import check_images
from pretrain.data.sources import ImageList, open_source
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import touch, write_coco
from tests.helpers.paths import SHARED_DATA as SHARED


def test_folder_is_recursive_sorted_and_takes_any_case(tmp_path):
    touch(tmp_path, "b/x.JPG", "a.png", "b.jpeg", "b/c/y.TiFf", "b/notes.txt", "z.WEBP", "no_suffix", "ä b.bmp")
    source = open_source(tmp_path)
    assert source.root == tmp_path
    assert source.names == ["a.png", "b.jpeg", "b/c/y.TiFf", "b/x.JPG", "z.WEBP", "ä b.bmp"]
    assert "6 images" in source.describe()
    assert "2 other files skipped (suffixes found:" in source.describe()


def test_hidden_entries_and_linked_folders_are_left_out_and_counted(tmp_path):
    touch(tmp_path / "data", "a.png", "._a.png", ".cache/b.png")
    touch(tmp_path / "elsewhere", "c.png")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/folder_link.jpg").symlink_to(tmp_path / "elsewhere")
    source = open_source(tmp_path / "data")
    assert source.names == ["a.png"]
    assert "2 hidden entries skipped" in source.describe()
    assert "3 linked folders skipped" in source.describe()


def test_a_link_to_the_data_itself_is_followed(tmp_path):
    touch(tmp_path / "data", "a.png")
    (tmp_path / "link").symlink_to("data")
    assert open_source(tmp_path / "link").names == ["a.png"]


def test_only_regular_files_and_links_to_them(tmp_path):
    touch(tmp_path, "a.png", "folder.jpg/b.png")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/null")
    (tmp_path / "file.png").symlink_to("a.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    source = open_source(tmp_path)
    # broken and circular links are images that are missing: they stay and are reported as unreadable
    assert source.names == ["a.png", "broken.png", "file.png", "folder.jpg/b.png", "loop.png"]
    assert "2 entries that are not regular files skipped" in source.describe()
    assert [bad.name for bad in check_images(ImageList(tmp_path, ["broken.png", "loop.png"]))] == [
        "broken.png",
        "loop.png",
    ]


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.jpg", b"\xc3\xa4.jpg", b"a\nb.jpg"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    source = open_source(tmp_path)
    assert len(source) == 3
    assert all(source.path(name).is_file() for name in source.names)
    source.describe().encode("utf-8")
    assert len(source.fingerprint()) == 64


def test_fingerprint_follows_names_and_sizes_only(tmp_path):
    touch(tmp_path / "one", "a.png", "b/c.png")
    shutil.copytree(tmp_path / "one", tmp_path / "far/away/two")
    one = open_source(tmp_path / "one").fingerprint()
    assert open_source(tmp_path / "far/away/two").fingerprint() == one
    (tmp_path / "one/a.png").write_bytes(b"longer content than it was before")
    assert open_source(tmp_path / "one").fingerprint() != one
    (tmp_path / "far/away/two/a.png").rename(tmp_path / "far/away/two/d.png")
    assert open_source(tmp_path / "far/away/two").fingerprint() != one


def test_fingerprint_of_a_missing_file(tmp_path):
    touch(tmp_path, "a.png")
    present = ImageList(tmp_path, ["a.png"]).fingerprint()
    (tmp_path / "a.png").unlink()
    assert ImageList(tmp_path, ["a.png"]).fingerprint() != present


def test_subset(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    source = open_source(tmp_path)
    assert source.subset(["c.png", "a.png"]).names == ["a.png", "c.png"]
    assert source.subset(["c.png"]).fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match=r"'x\.png'"):
        source.subset(["x.png"])


@pytest.mark.parametrize(
    ("files", "root", "names"),
    [
        (["train2017/a.jpg", "val2017/b.jpg", "annotations/i.json"], "train2017", ["a.jpg"]),
        (["train/a.jpg", "val/b.jpg", "annotations/instances_train.json"], "train", ["a.jpg"]),
        (
            ["images/training/a.jpg", "images/validation/b.jpg", "annotations/training/a.png"],
            "images/training",
            ["a.jpg"],
        ),
        (["images/train/x/a.png", "images/val/b.png", "annotations/train/a.png"], "images/train", ["x/a.png"]),
        (["train/a.jpg", "val/b.jpg"], "train", ["a.jpg"]),
        (["train/a.jpg", "test/b.jpg", "c.jpg"], "train", ["a.jpg"]),
        (["images/a.jpg", "annotations/a.png"], "images", ["a.jpg"]),
        # no split: everything
        (["train/a.jpg", "car/b.jpg"], "", ["car/b.jpg", "train/a.jpg"]),
        (["trainers/a.jpg", "val/b.jpg"], "", ["trainers/a.jpg", "val/b.jpg"]),
    ],
)
def test_data_set_roots_give_their_training_images(tmp_path, files, root, names):
    touch(tmp_path, *files)
    source = open_source(tmp_path)
    assert source.root == tmp_path / root
    assert source.names == names
    if root.split("/")[-1].startswith("train"):
        assert f"{root.split('/')[-1]} only" in source.describe()


@pytest.mark.parametrize("name", ["trainval", "train_val"])
def test_trainval_is_a_training_folder_where_there_is_no_other(name, tmp_path):
    for folder in (name, "test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.jpg").touch()
    assert open_source(str(tmp_path)).root == tmp_path / name
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.jpg").touch()
    assert open_source(str(tmp_path)).root == tmp_path / "train"


def test_two_training_folders_are_ambiguous(tmp_path):
    touch(tmp_path, "train2014/a.jpg", "train2017/a.jpg", "annotations/i.json")
    with pytest.raises(UserError, match=r"train2014, train2017.*give one"):
        open_source(tmp_path)


def test_images_option(tmp_path):
    touch(tmp_path / "images", "a.jpg")
    file = write_coco(tmp_path / "c.json", "a.jpg")
    (tmp_path / "list.txt").write_text("images/a.jpg")
    with pytest.raises(UserError, match="add --images ROOT"):
        open_source(file)
    with pytest.raises(UserError, match=r"--images .*imagse does not exist.*did you mean 'images'"):
        open_source(file, tmp_path / "imagse")
    with pytest.raises(UserError, match="is not a folder"):
        open_source(file, file)
    for data in (tmp_path / "images", tmp_path / "list.txt"):
        with pytest.raises(UserError, match="COCO json only"):
            open_source(data, tmp_path / "images")


def test_missing_path_names_the_nearest(tmp_path):
    touch(tmp_path, "nuclei/train/a.png", "camvid/x.png")
    with pytest.raises(UserError, match=r"nuclie/train does not exist.*'nuclie'.*did you mean 'nuclei'"):
        open_source(tmp_path / "nuclie/train")
    with pytest.raises(UserError, match="is a file"):
        open_source(tmp_path / "camvid/x.png/y")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is empty"):
        open_source(tmp_path / "empty/data")
    with pytest.raises(UserError, match="--data is empty"):
        open_source("")


def test_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=r"no image in .*it is empty.*\.jpg.*\.webp"):
        open_source(tmp_path)
    touch(tmp_path, "a.heic", "b.npy")
    with pytest.raises(UserError, match=r"suffixes found: \.heic, \.npy"):
        open_source(tmp_path)


def test_other_files(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(UserError, match="is a single image: give its folder"):
        open_source(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="neither a folder nor a regular file"):
        open_source(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop cannot be opened"):
        open_source(tmp_path / "loop")


def test_unreadable_subfolder_is_an_error_not_a_gap(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="locked cannot be read: Permission denied"):
        open_source(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small real data is not beside the repository (../shared/data)")
@pytest.mark.parametrize(("name", "num_images"), [("nuclei", 470), ("camvid", 367), ("coco_tiny", 80)])
def test_real_data_sets_give_their_training_images(name, num_images):
    source = open_source(SHARED / name)
    assert len(source) == num_images
    assert "only" in source.describe()


def test_folders_called_train_without_labels_are_folders_like_others(tmp_path):
    touch(tmp_path, "train_01/a.png", "train_02/b.png")
    assert open_source(tmp_path).names == ["train_01/a.png", "train_02/b.png"]
    touch(tmp_path, "val/c.png")
    with pytest.raises(ValueError, match="more than one training folder"):
        open_source(tmp_path)
