"""What detectron2's own loader crops, without shapely: the extent and the pixels of what is left of polygons."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.detection.targets import extent_within

pytestmark = pytest.mark.detectron2


def test_a_square_is_cut_by_hand() -> None:
    from det_configs.common.lazy_crop import CuttingCrop

    crop = CuttingCrop(10, 20, 30, 40)
    square = np.array([[0.0, 0], [25, 0], [25, 30], [0, 30]])
    (left,) = crop.apply_polygons([square])
    assert sorted(map(tuple, left)) == [(0, 0), (0, 10), (15, 0), (15, 10)]
    assert crop.apply_polygons([square - 100, square * 0.3]) == []
    (whole,) = crop.apply_polygons([np.array([[15.0, 25], [20, 25], [20, 30]])])
    assert whole.tolist() == [[5, 5], [10, 5], [10, 10]]


def test_random_polygons_keep_the_pixels_within() -> None:
    """Against a drawing of the whole polygon on a canvas that holds it, then cut as pixels."""
    from det_configs.common.lazy_crop import cut_to

    rng = np.random.default_rng(0)
    num_parts = num_equal = 0
    for _ in range(200):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        outline = rng.uniform(-20, 60, 2) + rng.uniform(3, 40, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        left = cut_to(outline, 40, 30)
        canvas = coco_mask.decode(coco_mask.frPyObjects([(outline + 100).ravel()], 260, 260))[..., 0][100:130, 100:140]
        if len(left) < 3:
            assert canvas.sum() <= 2
            continue
        num_parts += 1
        drawn = coco_mask.decode(coco_mask.frPyObjects([left.ravel()], 30, 40))[..., 0]
        assert (drawn != canvas).sum() <= 0.03 * canvas.sum() + 8  # half pixels at the border that is cut
        extent = extent_within(outline, (30, 40))
        if extent.any():
            grown = np.concatenate([extent[:2] - left.min(0), left.max(0) - extent[2:]])
            assert grown.min() > -1e-6
            num_equal += grown.max() < 1e-6
    assert num_parts > 80 and num_equal > 0.95 * num_parts  # the others are joined in a corner of the crop
