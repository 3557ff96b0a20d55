"""From detections to COCO's result format, and AP of boxes and masks, in percent."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.detection.coco import CocoSplit
from tools.detection.rle import to_rle

Detection = dict[str, Any]
"""COCO's result format: image_id, category_id, bbox (x, y, w, h), score, and segmentation (RLE) with masks."""

COCO_MAX_DETECTIONS = 100
_BY_AREA = ("APs", "APm", "APl")


def ground_truth(split: CocoSplit) -> dict[str, Any]:
    """Returns the split's usable annotations as a COCO data set, ids from 1: COCO's code takes 0 for "unmatched"."""
    annotations: list[dict[str, Any]] = []
    for image in split.images:
        for instance in image.instances:
            x1, y1, x2, y2 = instance.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": split.categories[instance.label][0],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                }
            )
            if instance.segmentation is not None:
                annotations[-1]["segmentation"] = to_rle(instance.segmentation, image.height, image.width)
    return {
        "info": {},
        "images": [{"id": image.id, "height": image.height, "width": image.width} for image in split.images],
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in split.categories],
    }


def coco_ap(
    split: CocoSplit, detections: list[Detection], max_detections: int = 100, with_masks: bool = True
) -> dict[str, Any]:
    """Returns `{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "segm": {...}}` in percent, None if undefined.

    Args:
        split: the images and annotations; crowds are ignored, not missed.
        detections: of these images, in any order.
        max_detections: an image and class, the strongest ones. COCO's own number is 100; images with more objects
            than that need more.
        with_masks: otherwise there is no "segm".
    """
    truth, detections = _numbered(ground_truth(split), detections)
    kinds = ("bbox", "segm") if with_masks else ("bbox",)
    return {kind: _ap(truth, detections, kind, max(max_detections, COCO_MAX_DETECTIONS)) for kind in kinds}


def _numbered(truth: dict[str, Any], detections: list[Detection]) -> tuple[dict[str, Any], list[Detection]]:
    """Returns both with images and categories numbered from 1: ids may be text, which COCO's code cannot count with."""
    ids = [image["id"] for image in truth["images"]]
    with contextlib.suppress(TypeError):  # text beside numbers
        ids.sort()  # pycocotools goes by the ids, which decides between equal scores
    images = {id: number for number, id in enumerate(ids, 1)}
    categories = {category["id"]: number for number, category in enumerate(truth["categories"], 1)}

    def numbered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**entry, "image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]]}
            for entry in entries
        ]

    renamed = {
        "images": [{**image, "id": images[image["id"]]} for image in truth["images"]],
        "annotations": numbered(truth["annotations"]),
        "categories": [{**category, "id": categories[category["id"]]} for category in truth["categories"]],
    }
    return {**truth, **renamed}, numbered(detections)


def _ap(truth: dict[str, Any], detections: list[Detection], kind: str, max_detections: int) -> dict[str, float | None]:
    if not detections:
        return _summary(np.where(_has_objects(truth), 0.0, -1.0)[None, None].repeat(10, 0))
    from faster_coco_eval import COCO, COCOeval_faster

    reference = COCO(truth, use_deepcopy=True)
    # COCO's code takes the area of a result, by which it is small or large, from its box where it has one: a mask's
    # would be that of its box. detectron2's evaluator takes the boxes away as well.
    other = "segmentation" if kind == "bbox" else "bbox"
    results = [{key: value for key, value in detection.items() if key != other} for detection in detections]
    evaluation = COCOeval_faster(reference, reference.loadRes(results), iouType=kind)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return _summary(np.asarray(evaluation.eval["precision"])[..., -1])


def _has_objects(truth: dict[str, Any]) -> np.ndarray:
    """Returns bool `(classes, 4)`: whether there is an object to find, by COCO's area ranges (all, s, m, l)."""
    ranges = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
    rows = {category["id"]: row for row, category in enumerate(truth["categories"])}
    found = np.zeros((len(rows), 4), bool)
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            area = annotation["area"]
            found[rows[annotation["category_id"]]] |= (area >= ranges[:, 0]) & (area <= ranges[:, 1])
    return found


def _summary(precision: np.ndarray) -> dict[str, float | None]:
    """Returns the six numbers of precision `(IoU 0.50:0.05:0.95, recall, class, area)`; -1 is undefined."""

    def mean(part: np.ndarray) -> float | None:
        defined = part[part > -1]
        return 100 * float(defined.mean()) if defined.size else None

    result = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0]), "AP75": mean(precision[5, ..., 0])}
    return result | {name: mean(precision[..., 1 + row]) for row, name in enumerate(_BY_AREA)}


def to_coco(image_id: int, found: dict[str, Any], categories: Sequence[tuple[int, str]]) -> list[Detection]:
    """Returns one image's detections in COCO's result format: boxes as x, y, width, height; masks where there are."""
    entries = [
        {
            "image_id": image_id,
            "category_id": categories[int(label)][0],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2), label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True)
    ]
    if found["masks"] is not None:
        for entry, rle in zip(entries, found["masks"], strict=True):
            entry["segmentation"] = rle
    return entries
