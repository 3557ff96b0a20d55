"""Boxes and masks in the pixels of the file: against a loop over pixels, and against detectron2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tools.detection.paste import scale_boxes, to_rles


def test_boxes_end_at_the_border_of_the_file() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1067.0, 800.0], [-0.5, 10.0, 20.0, 900.0], [533.5, 400.0, 533.5, 800.0]])
    scaled = scale_boxes(boxes, (800, 1067), (427, 639))
    assert scaled[0].tolist() == [0, 0, 639, 427]
    assert scaled[1].tolist() == pytest.approx([0, 10 * 427 / 800, 20 * 639 / 1067, 427])
    assert scaled[2].tolist() == pytest.approx([319.5, 213.5, 319.5, 427])


def random_masks(size: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes at sub-pixel places, some of them thinner than a pixel or at the border, and smooth masks in them."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    half = torch.rand(count, 2, generator=generator) * torch.tensor([[20.0], [2.0]]).repeat(count // 2, 1)
    boxes = torch.cat([centre - half, centre + half], 1)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
    return torch.rand(count, 1, 7, 7, generator=generator), boxes


@pytest.mark.parametrize("size", [(48, 64), (33, 20)])
def test_masks_are_pasted_at_sub_pixel_places(size: tuple[int, int]) -> None:
    """Against a loop over pixels: the mask's value at the pixel's centre, bilinear between the centres of its cells."""
    masks, boxes = random_masks(size, 24)
    found = [coco_mask.decode(rle) for rle in to_rles(masks, boxes, size)]
    wrong = close = 0
    for mask, box, pasted in zip(masks[:, 0].double().numpy(), boxes.double().numpy(), found, strict=True):
        padded = np.pad(mask, 1)
        for y, x in np.ndindex(size):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * 7 + 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * 7 + 0.5
            if not (0 < u < 8 and 0 < v < 8):
                assert pasted[y, x] == 0
                continue
            row, col = int(v), int(u)
            above = padded[row, col] * (1 - u + col) + padded[row, col + 1] * (u - col)
            below = padded[row + 1, col] * (1 - u + col) + padded[row + 1, col + 1] * (u - col)
            value = above * (1 - v + row) + below * (v - row)
            close += abs(value - 0.5) < 1e-4
            wrong += pasted[y, x] != (value >= 0.5) and abs(value - 0.5) >= 1e-4
    assert wrong == 0 and close < 5


@pytest.mark.detectron2
@pytest.mark.parametrize("size", [(480, 640), (33, 20)])
def test_masks_are_pasted_as_by_detectron2(size: tuple[int, int]) -> None:
    from detectron2.layers import paste_masks_in_image

    masks, boxes = random_masks(size, 200)
    expected = paste_masks_in_image(masks[:, 0], boxes, size).numpy()
    found = np.stack([coco_mask.decode(rle) for rle in to_rles(masks, boxes, size)])
    assert expected.any() and np.array_equal(found.astype(bool), expected)
