"""From a trained detector and image files to detections in pixels of the files, whatever engine it is built with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from det_configs.common.recipe import DetRecipe
from pretrain.data.sources import ImageList
from tools.detection.dataset import prepare
from tools.finetuning.shares import Prepared, share_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def scale_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Returns boxes `(N, 4)` x1, y1, x2, y2 of an image of `size` `(h, w)` in pixels of `new_size`: float32, CPU."""
    scale = torch.tensor([new_size[1] / size[1], new_size[0] / size[0]] * 2, device=boxes.device)
    return (boxes.float() * scale).cpu()


def to_rles(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Returns mask probabilities `(N, 1, M, M)` within their boxes as RLEs of the image, cut at 0.5.

    As torchvision's `paste_masks_in_image`, but it resamples one box at a time: a picture of a thousand pixels a side
    with hundreds of detections would need a GB there.
    """
    padded, scale = expand_masks(masks, padding=1)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    canvas = np.zeros((*size, 1), np.uint8, order="F")  # COCO's encoder reads column by column
    rles: list[dict[str, Any]] = []
    for mask, (x1, y1, x2, y2) in zip(padded, corners, strict=True):
        height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        pasted = F.interpolate(mask[None], size=(height, width), mode="bilinear", align_corners=False)[0, 0] > 0.5
        top, bottom, left, right = max(y1, 0), min(y2 + 1, size[0]), max(x1, 0), min(x2 + 1, size[1])
        region = canvas[top:bottom, left:right, 0]
        region[:] = pasted[top - y1 : bottom - y1, left - x1 : right - x1].numpy()
        rle = coco_mask.encode(canvas)[0]
        region[:] = 0
        rles.append({"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")})
    return rles


def detect_all(
    fabric: Fabric,
    detector: Any,
    images: ImageList,
    sizes: Sequence[tuple[int, int]],
    recipe: DetRecipe,
    workers: int,
    title: str = "evaluate",
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(index, detections)` of this process's share of the images; `sizes` are their `(H, W)`.

    One image at a time, so that no image's padding depends on its neighbours. Shows progress with the time left.
    """
    was_training = detector.training
    detector.eval()
    try:
        dataset = Prepared(images, partial(prepare, recipe=recipe))
        for index, image in share_of(fabric, dataset, workers, title, batch_size=None):
            with fabric.autocast():
                found = detector.detect(fabric.to_device(image), sizes[int(index)])
            yield int(index), found
    finally:
        detector.train(was_training)
