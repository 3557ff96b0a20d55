"""Box, mask, crowd flag and target are compared before the first step."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.errors import UserError
from tests.helpers.det_data import coco_json
from tools.detection.agreement import compare
from tools.detection.coco import read_coco
from tools.detection.records import Flaws
from tools.detection.targets import make_target
from tools.detection.transforms import evaluation_placement

RECIPE = DetRecipe(img_size=64)
BOXES = dataclasses.replace(RECIPE, masks=False)


def compared(tmp_path: Path, content: Any, recipe: DetRecipe = RECIPE) -> Flaws:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return compare(read_coco(path, tmp_path, with_masks=recipe.masks), recipe)


def many(change: Any) -> dict[str, Any]:
    """Returns 40 objects in images of 48 x 64, each changed in place."""
    content = coco_json(20, seed=3)
    for annotation in content["annotations"]:
        change(annotation)
    return content


def test_what_fits_gives_no_word(tmp_path: Path) -> None:
    assert compared(tmp_path, coco_json(20)).kinds == {}
    assert compared(tmp_path, coco_json(20), BOXES).kinds == {}


def relative(annotation: dict[str, Any], with_polygon: bool = True) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x / 64, y / 48, w / 64, h / 48]
    annotation["area"] = annotation["area"] / 64 / 48
    if with_polygon:
        points = annotation["segmentation"][0]
        annotation["segmentation"] = [[v / (48 if i % 2 else 64) for i, v in enumerate(points)]]


@pytest.mark.parametrize("recipe", [RECIPE, BOXES], ids=["masks", "boxes"])
def test_coordinates_in_0_to_1_are_an_error_that_shows_one(tmp_path: Path, recipe: DetRecipe) -> None:
    """They trained to an AP of 0.00 without a word."""
    content = many(relative)
    count = len(content["annotations"])
    with pytest.raises(
        UserError, match=rf"{count} of {count} objects are less than a pixel at --img-size 64"
    ) as caught:
        compared(tmp_path, content, recipe)
    assert "id 100: box 0." in str(caught.value) and "multiply them by width and height" in str(caught.value)
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(UserError, match="shares"):
        compared(tmp_path, content, BOXES)


def test_objects_without_a_target_are_counted_as_training_counts_them(tmp_path: Path) -> None:
    """Thin and small polygons at a quarter of the size: the same as those that `make_target` leaves out."""
    content = coco_json(30, seed=1, size=(240, 320))
    shapes = [(1, 1), (3, 3), (20, 0.2), (9, 30), (6, 2), (2, 6), (4, 4), (12, 12)]
    for index, annotation in enumerate(content["annotations"]):
        w, h = shapes[index % 8]
        x, y = 3.7 * index, 2.9 * index % 200
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if index % 3 == 0:
            found = coco_mask.merge(coco_mask.frPyObjects(outline, 240, 320))
            outline = {"size": [240, 320], "counts": found["counts"].decode()}  # type: ignore[assignment]
        annotation |= {"bbox": [x, y, w, h], "area": max(w * h, 0.1), "segmentation": outline}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    split = read_coco(path, tmp_path)
    recipe = dataclasses.replace(RECIPE, img_size=60)
    size = (240, 320)
    left = [len(make_target(record, evaluation_placement(recipe, size)).boxes) for record in split.images]
    gone = sum(len(record.instances) for record in split.images) - sum(left)
    assert 5 < gone < 0.6 * sum(len(record.instances) for record in split.images)
    kinds = compare(split, recipe).kinds
    assert kinds["less than a pixel at --img-size 60: no target"][0] == gone


def corners(annotation: dict[str, Any]) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, x + w, y + h]


def centre(annotation: dict[str, Any]) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x + w / 2, y + h / 2, w, h]


def swapped(annotation: dict[str, Any]) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [y, x, h, w]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (corners, "as x1, y1, x2, y2"),
        (centre, "as centre x, centre y, width, height"),
        (swapped, "as y, x, height, width"),
        (lambda annotation: relative(annotation, with_polygon=False), r"as shares \(0..1\) of the image"),
    ],
)
def test_boxes_in_another_format_are_named(tmp_path: Path, change: Any, name: str) -> None:
    """AP was measured against wrong boxes."""
    with pytest.raises(UserError, match=rf"boxes do not fit their masks, but do {name} \(id 10\d: box"):
        compared(tmp_path, many(change))


@pytest.mark.parametrize(("change", "name"), [(corners, "x1, y1, x2, y2"), (centre, "centre x")])
def test_boxes_without_masks_in_another_format_are_named(tmp_path: Path, change: Any, name: str) -> None:
    content = many(change)
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(UserError, match=rf"boxes reach out of their image, but none does as {name}"):
        compared(tmp_path, content, BOXES)


def test_boxes_without_masks_may_reach_out_a_little(tmp_path: Path) -> None:
    """They are clipped. All of them lie inside with the corner for the centre too, as most small ones do."""
    rng = np.random.default_rng(0)
    content = coco_json(1)
    image, first = content["images"][0], content["annotations"][0]
    content["annotations"] = []
    for number in range(40):
        side = rng.uniform(0.1, 0.2) * image["width"]
        x, y = rng.uniform(side / 2, (image["width"] - side, image["height"] - side))
        if number < 4:
            x = image["width"] - 0.9 * side  # a tenth of it lies outside
        box = {"bbox": [x, y, side, side], "area": side**2, "segmentation": [], "id": 1000 + number}
        content["annotations"].append(first | box)
    compared(tmp_path, content, BOXES)
    for annotation in content["annotations"][:4]:
        annotation["bbox"][0] += 0.2 * annotation["bbox"][2]
    with pytest.raises(UserError, match="boxes reach out of their image, but none does as centre x"):
        compared(tmp_path, content, BOXES)


def test_some_boxes_that_do_not_fit_are_a_word_and_most_an_error(tmp_path: Path) -> None:
    content = coco_json(20, seed=3)
    count = len(content["annotations"])
    for annotation in content["annotations"][4:9]:
        annotation["bbox"] = [0, 0, 6, 6]
    kinds = compared(tmp_path, content).kinds
    assert kinds["a box that does not fit its mask (IoU below 0.5)"] == [5, 104]
    for annotation in content["annotations"][: count - 2]:
        annotation["bbox"] = [0, 0, 4, 4]
    with pytest.raises(UserError, match=rf"\d+ of {count} boxes do not fit their masks .*masks=false") as caught:
        compared(tmp_path, content)
    assert "the mask reaches from" in str(caught.value)
    assert compared(tmp_path, content, BOXES).kinds["a box that does not fit its mask (IoU below 0.5)"][0] > count / 2


def test_half_of_the_objects_marked_as_crowds_is_a_word(tmp_path: Path) -> None:
    """They were silently no targets."""
    content = coco_json(20)
    for annotation in content["annotations"][::2]:
        annotation["iscrowd"] = 1
    half, count = len(content["annotations"][::2]), len(content["annotations"])
    kind = f"marked as a crowd (iscrowd=1) beside {count - half} that are not: no crowd is trained on"
    assert compared(tmp_path, content).kinds == {kind: [half, 100]}
    content = coco_json(20)
    content["annotations"][1]["iscrowd"] = 1  # a few are what they say, as in COCO
    assert compared(tmp_path, content).kinds == {}


def test_repeated_objects_and_wrong_areas_are_counted(tmp_path: Path) -> None:
    content = coco_json(20)
    for index in (3, 5):
        content["annotations"].append(copy.deepcopy(content["annotations"][index]) | {"id": 900 + index})
    content["annotations"][7]["area"] = 1e-3
    content["annotations"][8]["area"] = 2500
    kinds = compared(tmp_path, content).kinds
    assert kinds["the same image, class and box as one before"] == [2, 903]
    assert kinds["an area that does not fit box and mask: APs, APm and APl go by it"] == [2, 107]


def test_real_annotations_fit(shared_data: Path) -> None:
    for folder in ("train2017", "val2017"):
        root = shared_data / "coco_tiny"
        split = read_coco(root / "annotations" / f"instances_{folder}.json", root / folder)
        assert compare(split, DetRecipe()).kinds == {}
