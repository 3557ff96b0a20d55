"""What a detector is to find in a placed image: boxes, labels and masks, as detectron2's mapper makes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tools.detection.coco import ImageRecord, Instance
from tools.detection.rle import to_mask
from tools.detection.transforms import Placement

SMALLEST_SIDE = 1e-5
"""Pixels: a box that is no wider or no higher is none, as in detectron2's `filter_empty_instances`."""


class Target:
    """The objects of one training image.

    Neither a dict nor a dataclass: with bf16 Fabric casts every float that it finds in what a model is called with, and
    a coordinate of 1001.3 would become 1000. An object of another kind it moves by its `to`, and never looks into.

    Attributes:
        boxes: float32 `(N, 4)` x1, y1, x2, y2 in pixels, at sub-pixel places within the image.
        labels: int64 `(N,)`, from 1 (0 is the background).
        masks: uint8 `(N, H, W)` in {0, 1}.
    """

    def __init__(self, boxes: Tensor, labels: Tensor, masks: Tensor) -> None:
        self.boxes, self.labels, self.masks = boxes, labels, masks

    def to(self, device: torch.device | str) -> Target:
        """Returns the target on a device; a GPU copies while the CPU goes on, as Fabric does with tensors."""
        at_once = torch.device(device).type == "cuda"
        return Target(*(part.to(device, non_blocking=at_once) for part in (self.boxes, self.labels, self.masks)))

    def pin_memory(self) -> Target:
        """Returns the target in pinned memory, for torch's `DataLoader`."""
        return Target(self.boxes.pin_memory(), self.labels.pin_memory(), self.masks.pin_memory())


def make_target(record: ImageRecord, placement: Placement) -> Target:
    """Returns the objects that are left in the placed image; crowds are left out.

    A box is the annotated one, placed; only where the crop cuts it, it is drawn around what is left of the object.
    Polygons are placed before they become a mask. An object without a pixel at this scale is left out: its mask would
    teach that there is nothing.
    """
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    masks: list[np.ndarray] = []
    for instance in record.instances:
        if instance.crowd or _is_empty(_clipped(placement.box(instance.box), placement)):
            continue
        box, mask = _place(instance, placement)
        if _is_empty(box) or not mask.any():
            continue
        boxes.append(box)
        labels.append(instance.label + 1)
        masks.append(mask)
    return Target(
        boxes=torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *placement.output_size), np.uint8)),
    )


def _place(instance: Instance, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Returns an object's box `(4,)` and mask `(H, W)` in the placed image."""
    box = placement.box(instance.box)
    inside = _clipped(box, placement)
    is_cut = np.abs(box - inside).max() > 1e-3  # less is rounding, at an image's border
    height, width = placement.crop_size
    if isinstance(instance.segmentation, list):
        outlines = [placement.points(np.reshape(polygon, (-1, 2))) for polygon in instance.segmentation]
        mask = np.zeros(placement.output_size, np.uint8)
        mask[:height, :width] = to_mask([outline.ravel() for outline in outlines], height, width)
        left = [extent_within(outline, (height, width)) for outline in outlines] if is_cut else []
    else:
        whole = to_mask(instance.segmentation, *placement.source_size)
        mask = placement.mask(whole)
        left = [_clipped(placement.box(extent_of(whole, placement.source_window())), placement)] if is_cut else []
    if is_cut:
        left = [part for part in left if not _is_empty(part)] or [np.zeros(4)]
        inside = np.concatenate([np.min(left, axis=0)[:2], np.max(left, axis=0)[2:]])
    return inside, mask


def _clipped(box: np.ndarray, placement: Placement) -> np.ndarray:
    height, width = placement.crop_size
    return np.clip(box, 0, (width, height, width, height))


def _is_empty(box: np.ndarray) -> bool:
    x1, y1, x2, y2 = box.astype(np.float32)  # in which the corners of a small box may come together
    return bool(min(x2 - x1, y2 - y1) <= SMALLEST_SIDE)


def extent_within(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the box `(4,)` around what of a polygon `(N, 2)` lies in an image of `size` `(H, W)`; zeros for nothing.

    That part reaches no further than its edges and the image's corners that lie in the polygon.
    """
    start, limit = outline, np.array([size[1], size[0]], float)
    step = np.roll(outline, -1, axis=0) - start
    # Liang and Barsky: the shares of an edge at which it comes in and goes out, a side of the image at a time.
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.sort(np.stack([-start / step, (limit - start) / step]), axis=0)
    beside = (step == 0) & ((start < 0) | (start > limit))
    shares[:, step == 0] = np.array([[-np.inf], [np.inf]])
    first, last = shares[0].max(axis=1).clip(min=0)[:, None], shares[1].min(axis=1).clip(max=1)[:, None]
    middle = start + (first + last) / 2 * step
    # An edge that only touches the image's border belongs to a part that lies outside.
    kept = (first < last)[:, 0] & ~beside.any(axis=1) & ((middle > 0) & (middle < limit)).all(axis=1)
    corners = np.array([[0, 0], [limit[0], 0], [0, limit[1]], limit])
    covered = [_contains(outline, corner + np.sign(limit / 2 - corner) * 1e-6) for corner in corners]
    points = np.concatenate([(start + first * step)[kept], (start + last * step)[kept], corners[covered]])
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.zeros(4)


def _contains(outline: np.ndarray, point: np.ndarray) -> bool:
    (x, y), (x1, y1), (x2, y2) = point, outline.T, np.roll(outline, -1, axis=0).T
    crossed = (y1 > y) != (y2 > y)
    at = x1[crossed] + (y - y1[crossed]) * (x2 - x1)[crossed] / (y2 - y1)[crossed]
    return bool((at > x).sum() % 2)


def extent_of(mask: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """Returns the box around the pixels of a mask `(H, W)` within `window` (x1, y1, x2, y2); zeros for none."""
    x1, y1, x2, y2 = window
    part = mask[y1:y2, x1:x2]
    rows, cols = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not rows.size:
        return 0.0, 0.0, 0.0, 0.0
    return float(x1 + cols[0]), float(y1 + rows[0]), float(x1 + cols[-1] + 1), float(y1 + rows[-1] + 1)
