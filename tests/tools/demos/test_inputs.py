"""The demo on a COCO-layout folder: labels made from masks, and large folders shortened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.demo_data import CLASSES, DemoData, make_demo_data
from tools.demos import inputs as demo_folder
from tools.demos.inputs import class_names, label_of, open_folder, why_no_segmentation, write_segmentation
from tools.detection.records import ImageRecord, Instance

COUNTS = {"train": 8, "val": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", DemoData(8, 3, 1, seed=1, img_size=96))


def test_segmentation_from_instances_gives_the_same_labels(data: Path, tmp_path: Path) -> None:
    folder = open_folder(str(data / "coco"), tmp_path)
    assert why_no_segmentation(folder) is None
    root = write_segmentation(folder, tmp_path / "seg")
    for split in COUNTS:
        for path in sorted((root / "annotations" / split).iterdir()):
            made, own = (
                np.asarray(Image.open(path)),
                np.asarray(Image.open(data / "seg" / "annotations" / split / path.name)),
            )
            assert made.shape == own.shape
            assert (made == own).mean() > 0.98  # all but rims of polygons
    assert json.loads((root / "classes.json").read_text())["classes"] == ["background", *CLASSES]
    assert write_segmentation(folder, root) == root
    shutil.copytree(data / "coco", tmp_path / "other")
    file = tmp_path / "other" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    with pytest.raises(ValueError, match="was made from other images or annotations"):
        write_segmentation(open_folder(str(tmp_path / "other"), tmp_path), root)


def test_large_folders_are_shortened_evenly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_folder, "MAX_IMAGES", {"train": 4, "val": 200})
    folder = demo_folder.open_folder(str(data / "coco"), tmp_path)
    shortened = json.loads((tmp_path / "instances_train.json").read_text())
    assert [image["id"] for image in shortened["images"]] == [1, 3, 5, 7]
    assert {a["image_id"] for a in shortened["annotations"]} == {1, 3, 5, 7}
    assert folder.locations["train"].json_path == tmp_path / "instances_train.json"
    assert folder.locations["val"].json_path == data / "coco" / "annotations" / "instances_val.json"
    assert "4 of 8 images" in folder.notes[0]


def test_what_lies_in_the_images_that_are_left_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations that name their image otherwise, and val images without an object."""
    shutil.copytree(data / "coco", tmp_path / "coco")
    file = tmp_path / "coco/annotations/instances_val.json"
    content = json.loads(file.read_text())
    kept = [{**a, "image_id": str(a["image_id"])} for a in content["annotations"] if a["image_id"] == 3]
    file.write_text(json.dumps(content | {"annotations": kept}))
    monkeypatch.setattr(demo_folder, "MAX_IMAGES", {"train": 200, "val": 2})
    before = demo_folder.read_splits(demo_folder.locate(str(tmp_path / "coco")))["val"]
    folder = demo_folder.open_folder(str(tmp_path / "coco"), tmp_path / "work")
    assert [image.id for image in folder.splits["val"].images] == [1, 2]
    monkeypatch.setattr(demo_folder, "MAX_IMAGES", {"train": 200, "val": 1})
    file.write_text(json.dumps(content | {"annotations": [{**a, "image_id": "1"} for a in kept]}))
    folder = demo_folder.open_folder(str(tmp_path / "coco"), tmp_path / "work")
    shortened = json.loads((tmp_path / "work/instances_val.json").read_text())
    assert len(shortened["annotations"]) == len(kept) == len(before.images[2].instances) > 0


def test_crowds_are_ignored_and_small_things_lie_on_top(tmp_path: Path) -> None:
    def box(x: int, y: int, side: int, label: int, crowd: bool = False) -> Instance:
        polygon = [[x, y, x + side, y, x + side, y + side, x, y + side]]
        return Instance((x, y, x + side, y + side), label, polygon, float(side * side), crowd)

    small, large, crowd = box(4, 4, 4, 2), box(0, 0, 12, 0), box(8, 8, 8, 1, crowd=True)
    label = label_of(ImageRecord(1, "a.jpg", 20, 20, [small, large, crowd]))
    assert label[6, 6] == 3
    assert label[2, 2] == 1
    assert label[10, 10] == 1  # an object on a crowd stays an object
    assert label[14, 14] == 255
    assert label[18, 18] == 0
    assert class_names(["cat", "background", "cat"]) == ["background", "cat", "background (2)", "cat (3)"]
