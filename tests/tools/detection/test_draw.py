"""Pictures with detections: what is drawn where."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tools.detection.draw import MASK_OPACITY, colour, draw


def found(scores):
    mask = np.zeros((60, 80), np.uint8, order="F")
    mask[30:50, 20:60] = 1
    rle = coco_mask.encode(mask)
    boxes = np.array([[20.0, 30.0, 60.0, 50.0]] * len(scores))
    return {"boxes": boxes, "labels": [0] * len(scores), "scores": np.array(scores), "masks": [rle] * len(scores)}


def test_masks_are_blended_and_boxes_framed():
    drawn = np.asarray(draw(Image.new("RGB", (80, 60), "white"), found([0.9]), ["cell"], 0.5)).astype(int)
    expected = np.rint((1 - MASK_OPACITY) * 255 + MASK_OPACITY * np.array(colour(0)))
    assert np.abs(drawn[45, 50] - expected).max() <= 1  # within the mask
    assert tuple(drawn[49, 40]) == colour(0)  # the frame, on the last row of the box
    assert (drawn[55:] == 255).all() and (drawn[:, 70:] == 255).all()


def test_weak_detections_are_left_out():
    white = Image.new("RGB", (80, 60), "white")
    assert np.array_equal(np.asarray(draw(white, found([0.4]), ["cell"], 0.5)), np.asarray(white))


def test_neighbours_have_colours_of_their_own():
    assert len({colour(index) for index in range(50)}) == 50
