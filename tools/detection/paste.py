"""Predicted boxes and masks, as the model sees the image, into the pixels of the file."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

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

    Each pixel's centre is looked up in its box at sub-pixel places, equal to detectron2's to the pixel; torchvision
    resizes into boxes of whole pixels, at the cost of small objects. One box at a time: a picture of a thousand pixels
    per side with hundreds of detections would need a GB otherwise.
    """
    canvas = np.zeros((*size, 1), np.uint8, order="F")  # COCO's encoder reads column by column
    starts = (boxes.floor()[:, :2] - 1).clamp(min=0).to(torch.int64).tolist()
    limits = torch.tensor([size[1], size[0]])
    ends = torch.minimum((boxes.ceil()[:, 2:] + 1).to(torch.int64), limits).tolist()
    rles: list[dict[str, Any]] = []
    for mask, box, (left, top), (right, bottom) in zip(masks, boxes, starts, ends, strict=True):
        xs = _places(left, right, box[0], box[2])
        ys = _places(top, bottom, box[1], box[3])
        grid = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=2)
        pasted = F.grid_sample(mask[None], grid[None], align_corners=False)[0, 0] >= 0.5
        region = canvas[top:bottom, left:right, 0]
        region[:] = pasted.numpy()
        rles.append(to_json(coco_mask.encode(canvas)[0]))
        region[:] = 0
    return rles


def _places(start: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Returns where the centres of pixels `start` to `end` lie in a box side from `low` to `high`: -1 to 1 within."""
    centres = torch.arange(start, max(start, end), dtype=torch.float32) + 0.5
    return (centres - low) / (high - low).clamp(min=1e-6) * 2 - 1
