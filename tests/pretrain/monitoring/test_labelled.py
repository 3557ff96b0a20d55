"""Labelled images: which are known, which are to be classified, and folders that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from pretrain.monitoring.labelled import open_labelled
from tests.helpers.labelled import COLOURS, labelled_folder


def test_labelled_halves(tmp_path):
    root = labelled_folder(tmp_path / "l", COLOURS)
    (root / "blue/0.png").write_bytes(b"no image")
    found = open_labelled(root, 100)
    assert found.num_classes == 3 and found.num_known == 8 and len(found.images) == 17
    sides = found.images.names[: found.num_known], found.images.names[found.num_known :]
    assert sides[0] == ["blue/2.png", "blue/4.png", *(f"{c}/{i}.png" for c in ("red", "train") for i in (0, 2, 4))]
    assert not set(sides[0]) & set(sides[1])
    assert found.labels == [0] * 2 + [1] * 3 + [2] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    few = open_labelled(root, 3)  # one of a class, and of blue that is the broken one
    assert few.images.names == ["red/0.png", "train/0.png", "red/1.png", "train/1.png"] and few.labels == [0, 1, 0, 1]


def test_labelled_train_and_val(tmp_path):
    labelled_folder(tmp_path / "train2017", {"a": (0, 0, 0), "b": (255, 0, 0)}, 2)
    labelled_folder(tmp_path / "val", {"b": (255, 0, 0), "strange": (9, 9, 9)}, 2)
    found = open_labelled(tmp_path, 100)
    assert found.images.names[:4] == [
        "train2017/a/0.png",
        "train2017/a/1.png",
        "train2017/b/0.png",
        "train2017/b/1.png",
    ]
    assert found.images.names[4:] == ["val/b/0.png", "val/b/1.png"] and found.labels == [0, 0, 1, 1, 1, 1]


def test_validation_goes_before_test_and_deep_images_are_read_as_in_training(tmp_path):
    for split in ("train", "test", "val"):
        labelled_folder(tmp_path / split, {"a": (0, 0, 0), "b": (255, 0, 0)}, 2)
    Image.fromarray(np.full((8, 8), 500, np.uint16)).save(tmp_path / "train/a/deep.png")
    found = open_labelled(tmp_path, 100, (0.0, 1000.0))
    assert {name.split("/")[0] for name in found.images.names[found.num_known :]} == {"val"}
    deep = found.images.decode(found.images.names.index("train/a/deep.png"))
    assert np.asarray(deep).max() == 128
    for path in sorted((tmp_path / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "val").rmdir()
    assert open_labelled(tmp_path, 100).images.names[-1].startswith("test/")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "--monitor-labels: no image in"),
        (lambda root: labelled_folder(root, {"one": (1, 2, 3)}), "two classes or more.* of 1 classes"),
        (lambda root: labelled_folder(root, {"a": (1, 2, 3), "b": (1, 2, 3)}, 1), "and 0 others"),
        (lambda root: labelled_folder(root.parent, {"l": (1, 2, 3)}), "6 images lie in .*/l itself, 0.png for one"),
    ],
)
def test_labelled_errors(tmp_path, make, match):
    make(tmp_path / "l")
    with pytest.raises(ValueError, match=match):
        open_labelled(tmp_path / "l", 100)
