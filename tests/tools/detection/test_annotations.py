"""Single annotations as tools and hands write them: converted where they can mean one thing, else named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.detection.annotations import read_annotation
from tools.detection.notations import described
from tools.detection.records import ImageRecord, Instance
from tools.detection.rle import to_mask

SIZE = (48, 64)
POLYGON = [10, 8, 30, 8, 30, 28, 10, 28]
PAIRS = [[10, 8], [30, 8], [30, 28], [10, 28]]


def read(**change: Any) -> tuple[Instance, list[str]] | str:
    entry = {"id": 1, "bbox": [10, 8, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [POLYGON]} | change
    return read_annotation(entry, ImageRecord(1, "a.png", *SIZE), 0, with_masks=True)


def rle(polygon: list[float] = POLYGON) -> dict[str, Any]:
    found = coco_mask.merge(coco_mask.frPyObjects([polygon], *SIZE))
    return {"size": list(SIZE), "counts": found["counts"].decode()}


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([POLYGON], None),
        ([[10.0, 8.0, 30.0, 8.0, 30.0, 28.0, 10.0, 28.0]], None),
        (rle(), None),
        (POLYGON, "polygon given as a flat list"),
        (PAIRS, "polygon given as a list of points"),
        ([PAIRS], "polygons given as lists of points or of text"),
        ([[str(number) for number in POLYGON]], "polygons given as lists of points or of text"),
        ([{"x": x, "y": y} for x, y in PAIRS], "polygon given as a list of points"),
        ([rle()], "RLE in a list"),
        ([rle([10, 8, 20, 8, 20, 28, 10, 28]), rle([20, 8, 30, 8, 30, 28, 20, 28])], "RLE in a list"),
        (rle() | {"counts": str(rle()["counts"].encode())}, "RLE with its counts in quotation marks"),
        (json.dumps([POLYGON]), "segmentation given as text"),
        (json.dumps(rle()), "segmentation given as text"),
        (
            {"all_points_x": [p[0] for p in PAIRS], "all_points_y": [p[1] for p in PAIRS]},
            "polygon given as all_points_x and all_points_y",
        ),
        ({"type": "Polygon", "coordinates": [PAIRS]}, "polygon given as GeoJSON"),
    ],
)
def test_every_way_to_write_a_polygon_gives_the_same_mask(segmentation: Any, kind: str | None) -> None:
    """Flat lists, points and RLEs in lists were dropped as "no polygon"."""
    found = read(segmentation=segmentation)
    assert not isinstance(found, str), found
    instance, corrections = found
    assert corrections == ([] if kind is None else [kind])
    mask = to_mask(instance.segmentation, *SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[8:28, 10:30] = 1
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("segmentation", "flaw"),
    [
        ({"type": "Polygon", "coordinates": [PAIRS, PAIRS]}, "a segmentation that is GeoJSON with holes"),
        ("a/b_mask.PNG", "a segmentation that is the name of a mask file"),
        ([True, False], "a segmentation that is a list of bool"),
        (7, "a segmentation that is a int"),
        ([[1, 2], [3, 4]], "no polygon"),  # two points
    ],
)
def test_what_could_mean_several_things_is_named(segmentation: Any, flaw: str) -> None:
    assert str(read(segmentation=segmentation)).startswith(flaw)
    assert described({"b": 1, "a": 2}) == "an object with a, b"


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (["10", "8", "20", "20"], "box given as text or in a list of its own"),
        ("[10, 8, 20, 20]", "box given as text or in a list of its own"),
        ("10 8 20 20", "box given as text or in a list of its own"),
        ([[10, 8, 20, 20]], "box given as text or in a list of its own"),
        ({"x": 10, "y": 8, "width": 20, "height": 20}, "box given as x, y, width, height"),
        ({"xmin": 10, "ymin": 8, "xmax": 30, "ymax": 28}, "box given as xmin, ymin, xmax, ymax"),
    ],
)
def test_a_box_in_words_is_the_same_box(box: Any, kind: str) -> None:
    found = read(bbox=box)
    assert not isinstance(found, str), found
    assert found[0].box == (10, 8, 30, 28) and found[1] == [kind]


@pytest.mark.parametrize("box", [["a", "b", "c", "d"], "1 2 3", {"x": 1}, [True, 1, 2, 3], None, 5])
def test_a_box_that_is_none_stays_one(box: Any) -> None:
    assert read(bbox=box) == "no box"
    assert read(bbox=[10, 8, 20, 20, 0.5]) == "a box of 5 numbers, not of x, y, width, height"


@pytest.mark.parametrize(("flag", "crowd"), [("0", False), ("1", True), ("False", False), (1.0, True), (True, True)])
def test_a_crowd_flag_as_text_is_read_and_not_taken_for_true(flag: Any, crowd: bool) -> None:
    """bool("0") is True: every object was a crowd."""
    found = read(iscrowd=flag)
    assert not isinstance(found, str)
    assert found[0].crowd is crowd


def test_a_box_that_was_clipped_keeps_what_was_given() -> None:
    found = read(bbox=[50, 8, 20, 20])
    assert not isinstance(found, str)
    assert found[0].box == (50, 8, 64, 28) and found[0].whole == (50, 8, 70, 28)
    assert read()[0].whole is None  # type: ignore[union-attr]
