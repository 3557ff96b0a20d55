"""Predicted boxes and masks, as the model sees the image, into the pixels of the file."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from splitmask_backbones.torchvision_masks import paste_part
from tools.detection.rle import to_json


def scale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Returns boxes `(N, 4)` x1, y1, x2, y2 of an image of `size` `(h, w)` in pixels of `new_size`: float32, CPU.

    They end at the image's border, which the factor alone may miss by its rounding.
    """
    scale = torch.tensor([new_size[1] / size[1], new_size[0] / size[0]] * 2, device=boxes.device)
    limit = torch.tensor([new_size[1], new_size[0]] * 2, dtype=torch.float32)
    return torch.minimum((boxes.float() * scale).cpu().clamp(min=0), limit)


def to_rles(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Returns mask probabilities `(N, 1, M, M)` within their boxes as RLEs of the image, cut at 0.5.

    One box at a time: a picture of a thousand pixels per side with hundreds of detections would need a GB otherwise.
    """
    canvas = np.zeros((*size, 1), np.uint8, order="F")  # COCO's encoder reads column by column
    rles: list[dict[str, Any]] = []
    for mask, box in zip(masks, boxes, strict=True):
        top, left, pasted = paste_part(mask, box, size)
        region = canvas[top : top + pasted.shape[0], left : left + pasted.shape[1], 0]
        region[:] = (pasted >= 0.5).numpy()
        rles.append(to_json(coco_mask.encode(canvas)[0]))
        region[:] = 0
    return rles
