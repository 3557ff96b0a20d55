"""One synthetic scene."""

from __future__ import annotations

import numpy as np

from tools.demos.scenes import KINDS, draw_scene


def test_shapes_stay_visible_whatever_lies_on_them() -> None:
    for seed in range(5):
        pixels, shapes = draw_scene(96, KINDS, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert shapes
        assert np.sum([shape.mask for shape in shapes], axis=0).max() == 1
        assert all(shape.mask.sum() >= 60 for shape in shapes)
