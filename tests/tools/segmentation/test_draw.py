"""Overlays: classes over the picture, a legend with their shares."""

import numpy as np
from PIL import Image

from tools.segmentation.classes import Classes
from tools.segmentation.draw import ALPHA, draw_overlay

CLASSES = Classes(["sky", "road"], [[0, 0, 200], [200, 100, 0]])


def test_colours_are_blended_and_the_legend_holds_what_is_there():
    labels = np.zeros((40, 60), np.int64)
    labels[30:] = 1
    drawn = draw_overlay(Image.new("RGB", (60, 40), (50, 50, 50)), labels, CLASSES)
    pixels = np.asarray(drawn)
    assert pixels.shape[0] >= 40 and pixels.shape[1] > 60
    assert tuple(pixels[5, 5]) == tuple(np.rint(ALPHA * np.array([0, 0, 200]) + (1 - ALPHA) * 50).astype(int))
    assert tuple(pixels[35, 5]) == tuple(np.rint(ALPHA * np.array([200, 100, 0]) + (1 - ALPHA) * 50).astype(int))
    legend = {tuple(pixel) for pixel in pixels[:, 60:].reshape(-1, 3)}
    assert {(0, 0, 200), (200, 100, 0)} <= legend
    alone = np.asarray(draw_overlay(Image.new("RGB", (60, 40)), np.zeros((40, 60), np.int64), CLASSES))
    assert (200, 100, 0) not in {tuple(pixel) for pixel in alone[:, 60:].reshape(-1, 3)}
