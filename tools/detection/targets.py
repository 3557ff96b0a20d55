"""What a detector is to find in a placed image: boxes, labels and masks, as detectron2's mapper makes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tools.detection.records import ImageRecord, Instance
from tools.detection.rle import decode_window, extent, to_rle
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
        masks: uint8 `(N, H, W)` in {0, 1}; None for a detector of boxes alone.
    """

    def __init__(self, boxes: Tensor, labels: Tensor, masks: Tensor | None) -> None:
        self.boxes, self.labels, self.masks = boxes, labels, masks

    def to(self, device: torch.device | str) -> Target:
        """Returns the target on a device; a GPU copies while the CPU goes on, as Fabric does with tensors."""
        at_once = torch.device(device).type == "cuda"
        return self._mapped(lambda part: part.to(device, non_blocking=at_once))

    def pin_memory(self) -> Target:
        """Returns the target in pinned memory, for torch's `DataLoader`."""
        return self._mapped(lambda part: part.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Target:
        masks = None if self.masks is None else change(self.masks)
        return Target(change(self.boxes), change(self.labels), masks)


def make_target(record: ImageRecord, placement: Placement, with_masks: bool = True) -> Target:
    """Returns the objects that are left in the placed image; crowds are left out.

    A box is the annotated one, placed; only where the crop cuts it, it is drawn around what is left of the object.
    Polygons are placed before they become a mask. An object without a pixel at this scale is left out: its mask would
    teach that there is nothing.

    Args:
        with_masks: otherwise boxes alone, which are clipped where the crop cuts them.
    """
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    parts: list[Part] = []
    for instance in record.instances:
        found = None if instance.crowd else place(instance, placement, with_masks)
        if found is not None:
            boxes.append(found[0])
            labels.append(instance.label + 1)
            parts.append(found[1])
    masks = np.zeros((len(parts), *placement.output_size), np.uint8) if with_masks else None
    if masks is not None:
        for mask, (top, left, pixels) in zip(masks, parts, strict=True):
            mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Target(
        boxes=torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        labels=torch.tensor(labels, dtype=torch.int64),
        masks=None if masks is None else torch.from_numpy(masks),
    )


Part = tuple[int, int, np.ndarray]
"""Row and column of a mask's first pixel in the placed image, and the pixels `(h, w)` from there on."""


def place(instance: Instance, placement: Placement, with_masks: bool = True) -> tuple[np.ndarray, Part] | None:
    """Returns an object's box `(4,)` and the part of its mask that is not 0, or None if nothing of it is left.

    No mask is written out beyond the object's own box and the crop, however large the image is.
    """
    box = placement.box(instance.box)
    inside = _clipped(box, placement)
    if _is_empty(inside):
        return None
    if not with_masks:
        return inside, (0, 0, np.zeros((0, 0), np.uint8))
    is_cut = np.abs(box - inside).max() > 1e-3  # less is rounding, at an image's border
    if isinstance(instance.segmentation, list):
        outlines = [placement.points(np.reshape(polygon, (-1, 2))) for polygon in instance.segmentation]
        rle = to_rle([outline.ravel() for outline in outlines], *placement.crop_size)
        window = extent(rle)
        part = (window[1], window[0], decode_window(rle, window))
        left = [extent_within(outline, placement.crop_size) for outline in outlines] if is_cut else []
    else:
        rle = to_rle(instance.segmentation, *placement.source_size)
        window = _common(extent(rle), placement.source_window())
        pixels = decode_window(rle, window)
        part = placement.mask_part(pixels, window)
        (x, y), (x1, y1, x2, y2) = window[:2], extent_of(pixels)
        left = [_clipped(placement.box((x + x1, y + y1, x + x2, y + y2)), placement)] if is_cut else []
    if is_cut:
        left = [part for part in left if not _is_empty(part)] or [np.zeros(4)]
        inside = np.concatenate([np.min(left, axis=0)[:2], np.max(left, axis=0)[2:]])
    return None if _is_empty(inside) or not part[2].any() else (inside, part)


def _common(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Returns what two boxes x1, y1, x2, y2 have in common; without width and height for nothing."""
    x1, y1 = max(one[0], other[0]), max(one[1], other[1])
    return x1, y1, max(x1, min(one[2], other[2])), max(y1, min(one[3], other[3]))


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


def extent_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the box x1, y1, x2, y2 around the pixels of a mask `(H, W)`; zeros for none."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1) if rows.size else (0, 0, 0, 0)
