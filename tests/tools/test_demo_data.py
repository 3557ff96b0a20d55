"""The synthetic scenes: deterministic, consistent between their two layouts, and usable by the tools that read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from splitmask_backbones.errors import UserError
from tools.demo_data import CLASSES, make_demo_data
from tools.demos.scenes import KINDS, TEXTURES, draw_scene

COUNTS = {"train": 8, "val": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", 8, 3, 4, seed=1, img_size=96)


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def annotations_of(data: Path, split: str) -> dict:
    return json.loads((data / "coco" / "annotations" / f"instances_{split}.json").read_text())


def mask_of(annotation: dict, size: int = 96) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, size, size))).astype(bool)
    return coco_mask.decode(segmentation).astype(bool)


def test_same_seed_same_bytes_other_seed_other_images(data: Path, tmp_path: Path) -> None:
    again = digest(make_demo_data(tmp_path / "again", 8, 3, 4, seed=1, img_size=96))
    assert again == digest(data)
    other = digest(make_demo_data(tmp_path / "other", 8, 3, 4, seed=2, img_size=96))
    images = [name for name in again if name.endswith(".jpg")]
    assert len({again[name] for name in images}) == 8 + 3 + 4  # every scene is another, over all splits
    assert not {again[name] for name in images} & {other[name] for name in images}


def test_a_picture_does_not_depend_on_how_many_there_are(data: Path, tmp_path: Path) -> None:
    fewer = make_demo_data(tmp_path / "fewer", 2, 1, 1, seed=1, img_size=96)
    for name in ("coco/train/000001.jpg", "coco/val/000000.jpg", "unlabelled/000000.jpg"):
        assert (fewer / name).read_bytes() == (data / name).read_bytes()


def test_labels_are_exactly_the_instance_masks(data: Path) -> None:
    for split, count in COUNTS.items():
        content = annotations_of(data, split)
        assert len(content["images"]) == count
        for image in content["images"]:
            label = Image.open(data / "seg" / "annotations" / split / image["file_name"].replace(".jpg", ".png"))
            assert label.mode == "P"
            label_values = np.asarray(label)
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert sum(a["area"] for a in own) == np.count_nonzero(label_values)  # visible masks do not overlap
            for annotation in own:
                mask = mask_of(annotation)
                right = label_values == annotation["category_id"]
                if isinstance(annotation["segmentation"], dict):
                    assert mask.sum() == annotation["area"]
                    assert right[mask].all()
                else:  # a polygon is rasterised by other rules: off by its rim at most
                    perimeter = 2 * (annotation["bbox"][2] + annotation["bbox"][3])
                    assert abs(int(mask.sum()) - annotation["area"]) < 0.5 * perimeter
                    assert (mask & right).sum() > 0.9 * annotation["area"]


def test_boxes_are_tight_and_both_mask_formats_occur(data: Path) -> None:
    kinds = set()
    for annotation in annotations_of(data, "train")["annotations"]:
        kinds.add((type(annotation["segmentation"]), CLASSES[annotation["category_id"] - 1] == "ring"))
        if isinstance(annotation["segmentation"], dict):
            rows, columns = np.nonzero(mask_of(annotation))
            assert annotation["bbox"] == [
                columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
            ]  # fmt: skip
    assert (list, False) in kinds  # polygons
    assert (dict, True) in kinds
    assert (list, True) not in kinds  # a polygon cannot have a ring's hole


def test_the_two_layouts_hold_the_same_images(data: Path) -> None:
    for split in COUNTS:
        for path in (data / "coco" / split).iterdir():
            assert path.read_bytes() == (data / "seg" / "images" / split / path.name).read_bytes()
    classes = json.loads((data / "seg" / "classes.json").read_text())
    assert classes["classes"] == ["background", *CLASSES]
    assert len(classes["palette"]) == len(classes["classes"])
    assert len(TEXTURES) == KINDS == len(CLASSES)


def test_shapes_stay_visible_whatever_lies_on_them() -> None:
    for seed in range(5):
        pixels, shapes = draw_scene(96, KINDS, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert shapes
        assert np.sum([shape.mask for shape in shapes], axis=0).max() == 1
        assert all(shape.mask.sum() >= 60 for shape in shapes)


def test_readers_of_the_tools_find_everything_and_drop_nothing(data: Path) -> None:
    from tools.detection.splits import locate, read_splits
    from tools.segmentation.pairs import find_split

    splits = read_splits(locate(str(data / "coco")))
    assert [name for _, name in splits["train"].categories] == list(CLASSES)
    for name, count in COUNTS.items():
        assert len(splits[name].images) == count
        assert not splits[name].dropped.kinds
        assert len(find_split(data / "seg", name).pairs) == count


def test_segmentation_from_instances_gives_the_same_labels(data: Path, tmp_path: Path) -> None:
    from tools.demos.folder import open_folder, why_no_segmentation, write_segmentation

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


def test_large_folders_are_shortened_evenly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.demos import folder as demo_folder

    monkeypatch.setattr(demo_folder, "MAX_IMAGES", {"train": 4, "val": 200})
    folder = demo_folder.open_folder(str(data / "coco"), tmp_path)
    shortened = json.loads((tmp_path / "instances_train.json").read_text())
    assert [image["id"] for image in shortened["images"]] == [1, 3, 5, 7]
    assert {a["image_id"] for a in shortened["annotations"]} == {1, 3, 5, 7}
    assert folder.locations["train"].json_path == tmp_path / "instances_train.json"
    assert folder.locations["val"].json_path == data / "coco" / "annotations" / "instances_val.json"
    assert "4 of 8 images" in folder.notes[0]


def test_crowds_are_ignored_and_small_things_lie_on_top(tmp_path: Path) -> None:
    from tools.demos.folder import class_names, label_of
    from tools.detection.coco import ImageRecord, Instance

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


def test_a_finished_folder_is_kept_and_a_foreign_one_is_refused(data: Path, tmp_path: Path) -> None:
    before = (data / "demo_data.json").stat().st_mtime_ns
    assert make_demo_data(data, 8, 3, 4, seed=1, img_size=96) == data
    assert (data / "demo_data.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds something else"):
        make_demo_data(data, 8, 3, 5, seed=1, img_size=96)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        make_demo_data(tmp_path / "mine", 1, 1, 1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
