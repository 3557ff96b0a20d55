"""Label files and evaluation images of data sets as people have them: names alone, then a folder on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.data.selection import evaluation_images, label_files, select
from pretrain.data.sources import open_source

VOC = [
    "JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png", "SegmentationObject/a.png",
    "SegmentationClassAug/b.png",
]  # fmt: skip
DSB = [
    "train/1/images/1.png",
    "train/1/masks/x.png",
    "train/1/masks/y.png",
    "train/2/images/2.png",
    "train/2/masks/z.png",
]
CITYSCAPES = [
    f"{kind}/{split}/aachen/aachen_0{number}_{ending}.png"
    for split in ("train", "val", "test")
    for number in (1, 2)
    for kind, ending in (
        ("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("gtFine", "gtFine_color"),
        ("gtFine", "gtFine_instanceIds"),
    )
]  # fmt: skip
MVTEC = [
    "bottle/train/good/000.png", "bottle/train/good/001.png", "bottle/test/good/000.png", "bottle/test/broken/000.png",
    "bottle/ground_truth/broken/000_mask.png",
]  # fmt: skip
ISIC = [
    "ISIC-2017_Training_Data/ISIC_0001.jpg", "ISIC-2017_Training_Data/ISIC_0002.jpg",
    "ISIC-2017_Training_Part1_GroundTruth/ISIC_0001_segmentation.png",
    "ISIC-2017_Training_Part1_GroundTruth/ISIC_0002_segmentation.png",
]  # fmt: skip
PETS = ["images/cat_1.jpg", "images/dog_2.jpg", "annotations/trimaps/cat_1.png", "annotations/trimaps/dog_2.png"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (VOC, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]),
        (DSB, ["train/1/images/1.png", "train/2/images/2.png"]),
        (CITYSCAPES, [f"leftImg8bit/train/aachen/aachen_0{n}_leftImg8bit.png" for n in (1, 2)]),
        (MVTEC, ["bottle/train/good/000.png", "bottle/train/good/001.png"]),
        (ISIC, ISIC[:2]),
        (PETS, PETS[:2]),
        (["x/a.jpg", "x/a_mask.png", "x/b.jpg", "x/b-seg.png"], ["x/a.jpg", "x/b.jpg"]),
        (["stage1_train/a.png", "stage1_test/b.png"], ["stage1_train/a.png"]),
        # What only looks like it: classes, one folder of masks alone, several folders without a training one.
        (["with_mask/1.jpg", "without_mask/2.jpg"], None),
        (["with_mask/1.png", "without_mask/2.png"], None),
        (["masks/1.png", "masks/2.png"], None),
        (["test/1.png", "val/2.png"], None),
        (["train/a.jpg", "freight_test/b.jpg"], None),
        (["a_mask.png", "b_mask.png"], None),
        (["labels/a.jpg", "images/b.jpg"], None),  # a JPEG holds no labels
    ],
)
def test_data_sets_as_people_have_them(tmp_path: Path, names: list[str], kept: list[str] | None) -> None:
    found, notes = select(tmp_path, sorted(names))
    assert found == sorted(kept if kept is not None else names)
    assert bool(notes) == (kept is not None)


def test_what_was_left_out_is_said() -> None:
    found, notes = select(Path(), sorted(CITYSCAPES))
    assert len(found) == 2
    assert notes[0].startswith("16 evaluation images left out (") and notes[1].startswith(
        "6 label files left out (gtFine"
    )
    assert len(evaluation_images(CITYSCAPES)) == 16


def test_globs_decide_alone() -> None:
    names = sorted(VOC)
    assert select(Path(), names, include=["SegmentationClass/*"])[0] == ["SegmentationClass/a.png"]
    found, notes = select(Path(), names, exclude=["b.*"])
    assert found == ["JPEGImages/a.jpg"] and notes[-1] == "1 left out by --exclude"
    found, notes = select(Path(), names, include=["*.jpg"], exclude=["*/b.jpg"])
    assert found == ["JPEGImages/a.jpg"] and "--include" in notes[0]
    with pytest.raises(ValueError, match=r"--exclude \* leaves none of the 5 images"):
        select(Path(), names, exclude=["*"])
    assert select(Path(), names, automatic=False) == (names, ())


def test_classes_called_as_masks_are_no_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = ("with_mask", "without_mask", "mask_weared_incorrect")
    for folder in folders:
        (tmp_path / folder).mkdir()
        for number in range(5):
            photo = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            photo.save(tmp_path / folder / f"{number}.png")
    assert len(open_source(tmp_path)) == 15
    for path in (tmp_path / "without_mask").iterdir():  # coloured labels of few colours are some
        Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 0]]])).save(path)
    assert {name.split("/")[0] for name in open_source(tmp_path).names} == {*folders} - {"without_mask"}


def test_a_picture_in_several_formats_is_no_label_of_itself(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "bmp", "tif", "gif", "webp"):
        Image.new("L", (8, 8), 90).save(tmp_path / f"img.{suffix}")
    assert len(open_source(tmp_path)) == 6


def test_maps_of_few_grey_levels_with_the_names_of_photographs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("photos", "classes", "depth"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        photo = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        photo.save(tmp_path / f"photos/{number}.jpg")
        Image.fromarray(rng.integers(0, 5, (40, 40), dtype=np.uint8)).save(tmp_path / f"classes/{number}.png")
        photo.convert("L").save(tmp_path / f"depth/{number}.png")  # many levels: an image
    source = open_source(tmp_path)
    assert {name.split("/")[0] for name in source.names} == {"photos", "depth"}
    assert "6 label files left out (classes)" in source.describe()
    # Alone they are what there is.
    assert len(open_source(tmp_path / "classes")) == 6
    assert label_files(tmp_path, [f"classes/{number}.png" for number in range(6)]) == set()
