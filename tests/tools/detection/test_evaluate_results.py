"""From detections to COCO's result format."""

import numpy as np

from tools.detection.evaluate import to_coco


def test_boxes_become_corner_width_height_and_labels_ids():
    found = {
        "boxes": np.array([[1.0, 2.0, 4.0, 8.0]]), "labels": np.array([1]), "scores": np.array([0.5]), "masks": ["rle"],
    }  # fmt: skip
    assert to_coco(7, found, [(3, "a"), (90, "b")]) == [
        {"image_id": 7, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5, "segmentation": "rle"}
    ]
