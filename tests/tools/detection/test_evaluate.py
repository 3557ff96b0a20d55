"""COCO AP: against pycocotools, and against values known by hand."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.detection.coco import CocoSplit
from tools.detection.evaluate import coco_ap, ground_truth
from tools.detection.records import Flaws, ImageRecord, Instance

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def rle_of(box: tuple[float, float, float, float], size: tuple[int, int]) -> dict[str, Any]:
    mask = np.zeros(size, np.uint8, order="F")
    x1, y1, x2, y2 = (round(side) for side in box)
    mask[y1:y2, x1:x2] = 1
    rle = coco_mask.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


def make_split(boxes: list[list[tuple[Any, int, bool]]], size: tuple[int, int] = (200, 300)) -> CocoSplit:
    """boxes[image] = [(x1 y1 x2 y2, label, crowd), ...]."""
    images = [
        ImageRecord(
            i + 1,
            f"{i}.png",
            *size,
            [Instance(b, c, rle_of(b, size), (b[2] - b[0]) * (b[3] - b[1]), crowd) for b, c, crowd in listed],
        )
        for i, listed in enumerate(boxes)
    ]
    categories = [(5, "a"), (9, "b"), (12, "never")]
    return CocoSplit(Path("x.json"), Path(), images, categories, Flaws(), len(images), 0, Flaws())


def detection(image: int, box: Any, label: int, score: float, size: tuple[int, int] = (200, 300)) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": (5, 9, 12)[label],
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "score": score,
        "segmentation": rle_of(box, size),
    }


def reference(split: CocoSplit, detections: list[dict[str, Any]], kind: str) -> dict[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth(split))
        truth.createIndex()
        other = {"bbox": "segmentation", "segm": "bbox"}[kind]  # as detectron2's COCOEvaluator
        results = [{k: v for k, v in d.items() if k != other} for d in detections]
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {key: None if v == -1 else 100 * v for key, v in zip(KEYS, evaluation.stats[:6], strict=True)}


def test_agrees_with_pycocotools_on_random_detections_with_crowds() -> None:
    rng = np.random.default_rng(0)

    def box() -> tuple[float, float, float, float]:
        x, y, w, h = rng.integers(0, 150), rng.integers(0, 80), *rng.integers(5, 120, 2)
        return float(x), float(y), float(x + w), float(y + h)

    for _ in range(3):
        split = make_split(
            [[(box(), int(rng.integers(2)), bool(rng.random() < 0.2)) for _ in range(8)] for _ in range(6)]
        )
        for image, id in zip(split.images, (5, 0, 7, 9, 3, 11), strict=True):
            image.id = id  # in no order, which decides between equal scores
        found = []
        for image in split.images:
            for instance in image.instances:
                for _ in range(int(rng.integers(3))):
                    moved = np.array(instance.box) + rng.integers(-4, 5, 4)
                    x1, y1 = max(0, moved[0]), max(0, moved[1])
                    moved = (x1, y1, min(300, max(x1 + 1, moved[2])), min(200, max(y1 + 1, moved[3])))
                    found.append(
                        detection(image.id, tuple(map(float, moved)), instance.label, round(float(rng.random()), 1))
                    )
        result = coco_ap(split, found)
        for kind in ("bbox", "segm"):
            expected = reference(split, found, kind)
            assert list(result[kind]) == list(KEYS)
            for key in KEYS:
                assert result[kind][key] == pytest.approx(expected[key], abs=1e-9), (kind, key)


def test_known_values() -> None:
    box = (10.0, 10.0, 60.0, 60.0)  # 2500 pixels: medium
    split = make_split([[(box, 0, False)], [(box, 0, False)]])
    perfect = coco_ap(split, [detection(1, box, 0, 0.9), detection(2, box, 0, 0.8)])
    assert perfect["bbox"] == {"AP": 100, "AP50": 100, "AP75": 100, "APs": None, "APm": 100, "APl": None}
    half = coco_ap(split, [detection(1, box, 0, 0.9)])["segm"]["AP"]
    assert half == pytest.approx(100 * 51 / 101)  # precision 1 at the 51 recall points up to 0.5
    # IoU 0.8: right at 0.50 ... 0.80, seven of ten thresholds
    shifted = coco_ap(split, [detection(i, (10.0, 10.0, 60.0, 50.0), 0, 0.9) for i in (1, 2)])
    assert shifted["bbox"]["AP"] == pytest.approx(70) and shifted["bbox"]["AP75"] == pytest.approx(100)


def test_a_crowd_is_neither_missed_nor_a_mistake() -> None:
    box, crowd = (10.0, 10.0, 60.0, 60.0), (100.0, 50.0, 250.0, 150.0)
    split = make_split([[(box, 0, False), (crowd, 0, True)]])
    inside = [detection(1, (x, 60.0, x + 20.0, 90.0), 0, 0.95) for x in (110.0, 150.0, 200.0)]
    assert coco_ap(split, [detection(1, box, 0, 0.9), *inside])["segm"]["AP"] == 100
    outside = [{**d, "image_id": 1} for d in (detection(1, (200.0, 0.0, 220.0, 30.0), 0, 0.95),)]
    assert coco_ap(split, [detection(1, box, 0, 0.9), *outside])["segm"]["AP"] == pytest.approx(50)


def test_nothing_found_is_zero_and_only_what_has_objects_is_defined() -> None:
    split = make_split([[((10.0, 10.0, 60.0, 60.0), 0, False), ((0.0, 0.0, 150.0, 150.0), 1, True)]])
    nothing = {"AP": 0, "AP50": 0, "AP75": 0, "APs": None, "APm": 0, "APl": None}
    assert coco_ap(split, []) == {"bbox": nothing, "segm": nothing}


def test_more_than_a_hundred_detections_count_when_asked_for() -> None:
    boxes = [(float(x), float(y), x + 8.0, y + 8.0) for x in range(0, 300, 20) for y in range(0, 200, 20)]
    split = make_split([[(box, 0, False) for box in boxes]])
    found = [detection(1, box, 0, 1 - i / 1000) for i, box in enumerate(boxes)]
    assert len(found) == 150
    assert coco_ap(split, found, 200)["bbox"]["AP"] == 100
    assert coco_ap(split, found)["bbox"]["AP"] == pytest.approx(100 * 67 / 101)  # recall ends at 100 of 150


def test_a_found_mask_is_small_or_large_by_its_own_area() -> None:
    """A thin mask in a large box, in the wrong place: a mistake among the small ones, as in detectron2's evaluator."""
    box = (10.0, 10.0, 30.0, 30.0)
    split = make_split([[(box, 0, False)]])
    thin = detection(1, (100.0, 50.0, 250.0, 52.0), 0, 0.95) | {"bbox": [100.0, 50.0, 150.0, 100.0]}
    found = coco_ap(split, [detection(1, box, 0, 0.9), thin])
    assert found["segm"]["APs"] == pytest.approx(50) and found["segm"]["AP"] == pytest.approx(50)
    assert found["bbox"]["APs"] == pytest.approx(100) and found["bbox"]["AP"] == pytest.approx(50)


def test_ids_may_be_text() -> None:
    box = (10.0, 10.0, 60.0, 50.0)
    split = make_split([[(box, 0, False)], [(box, 1, False)]])
    split.images[0].id, split.images[1].id = "im0", "im1"  # type: ignore[assignment]
    split.categories[:] = [("cell", "a"), ("car", "b"), (12, "never")]  # type: ignore[list-item]
    found = [{**detection(0, box, 0, 0.9), "image_id": "im0", "category_id": "cell"}]
    assert coco_ap(split, found)["bbox"]["AP50"] == pytest.approx(50.0)
