"""From detections to results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.detection.evaluate import Detection


def to_coco(image_id: int, found: dict[str, Any], categories: Sequence[tuple[int, str]]) -> list[Detection]:
    """Returns one image's detections in COCO's result format: boxes as x, y, width, height."""
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(label)][0],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
            "segmentation": rle,
        }
        for (x1, y1, x2, y2), label, score, rle in zip(
            found["boxes"], found["labels"], found["scores"], found["masks"], strict=True
        )
    ]


def best_by(entry: dict[str, Any]) -> float:
    """Returns what detectors are compared by: mask AP plus box AP, an undefined one as 0."""
    return sum(entry[kind]["AP"] or 0.0 for kind in ("bbox", "segm"))
