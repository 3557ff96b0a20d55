"""The scenes: deterministic, consistent between their two layouts, and usable by the tools that read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from splitmask_backbones.errors import UserError
from tools.demo_data import CLASSES, DemoData, make_demo_data
from tools.demos.scenes import KINDS

COUNTS = {"train": 8, "val": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", DemoData(8, 3, 4, seed=1, img_size=96))


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
    again = digest(make_demo_data(tmp_path / "again", DemoData(8, 3, 4, seed=1, img_size=96)))
    assert again == digest(data)
    other = digest(make_demo_data(tmp_path / "other", DemoData(8, 3, 4, seed=2, img_size=96)))
    images = [name for name in again if name.endswith(".jpg")]
    assert len({again[name] for name in images}) == 8 + 3 + 4  # every scene is another, over all splits
    assert not {again[name] for name in images} & {other[name] for name in images}


def test_a_picture_does_not_depend_on_how_many_there_are(data: Path, tmp_path: Path) -> None:
    fewer = make_demo_data(tmp_path / "fewer", DemoData(2, 1, 1, seed=1, img_size=96))
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
        kinds.add(type(annotation["segmentation"]))
        if isinstance(annotation["segmentation"], dict):
            rows, columns = np.nonzero(mask_of(annotation))
            assert annotation["bbox"] == [
                columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
            ]  # fmt: skip
    assert kinds == {list, dict}


def test_the_two_layouts_hold_the_same_images(data: Path) -> None:
    for split in COUNTS:
        for path in (data / "coco" / split).iterdir():
            assert path.read_bytes() == (data / "seg" / "images" / split / path.name).read_bytes()
    classes = json.loads((data / "seg" / "classes.json").read_text())
    assert classes["classes"] == ["background", *CLASSES]
    assert len(classes["palette"]) == len(classes["classes"])
    assert len(CLASSES) == KINDS


def test_readers_of_the_tools_find_everything_and_drop_nothing(data: Path) -> None:
    from tools.detection.splits import locate, read_splits
    from tools.segmentation.layout import find_split

    splits = read_splits(locate(str(data / "coco")))
    assert [name for _, name in splits["train"].categories] == list(CLASSES)
    for name, count in COUNTS.items():
        assert len(splits[name].images) == count
        assert not splits[name].dropped.kinds
        assert len(find_split(data / "seg", name).pairs) == count


def test_a_finished_folder_is_kept_and_a_foreign_one_is_refused(data: Path, tmp_path: Path) -> None:
    before = (data / "demo_data.json").stat().st_mtime_ns
    assert make_demo_data(data, DemoData(8, 3, 4, seed=1, img_size=96)) == data
    assert (data / "demo_data.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds something else"):
        make_demo_data(data, DemoData(8, 3, 5, seed=1, img_size=96))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        make_demo_data(tmp_path / "mine", DemoData(1, 1, 1))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
