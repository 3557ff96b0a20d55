"""Masks of torchvision's Mask R-CNN where the objects are: its targets in training, and what is pasted into the image.

torchvision looks a mask's values up at the corners of pixels, and pastes into boxes of whole pixels: both cost small
objects. detectron2 does neither, and the same detector has the same masks here.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class PlacedMasks(GeneralizedRCNNTransform):
    """torchvision's transform: resizes, normalises and pads to a batch; the masks of the targets lie where they are.

    Attributes:
        with_masks: whether the detector has a mask head; without one, masks of targets are left out.
    """

    with_masks = True

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Returns the batch and the targets, whose masks are those of `at_corners`."""
        if targets is not None and not self.with_masks:
            targets = [{key: value for key, value in target.items() if key != "masks"} for target in targets]
        batch, placed = super().forward(images, targets)
        for target in placed or ():
            if "masks" in target:
                target["masks"] = at_corners(target["masks"])
        return batch, placed

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> Any:
        """Returns both resized; a mask's pixel is that of the old one in which its centre lies."""
        masks = None if target is None else target.get("masks")
        if target is None or masks is None:
            return super().resize(image, target)
        image, target = super().resize(image, {key: value for key, value in target.items() if key != "masks"})
        size = (image.shape[-2], image.shape[-1])
        if masks.shape[-2:] != size:
            masks = F.interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0].to(torch.uint8)
        return image, {**target, "masks": masks}

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Sequence[tuple[int, int]]
    ) -> Any:
        """Returns detections in pixels of the given images, masks as probabilities `(N, 1, H, W)`."""
        if self.training:  # then there are none
            return result
        small = [entry.pop("masks", None) for entry in result]
        result = super().postprocess(result, image_shapes, list(original_image_sizes))
        for entry, masks, size in zip(result, small, original_image_sizes, strict=True):
            if masks is not None:
                entry["masks"] = paste(masks, entry["boxes"], (int(size[0]), int(size[1])))
        return result


class KeepSize(PlacedMasks):
    """Normalises and pads to a batch; leaves sizes alone, and masks as `(N, 1, 28, 28)` within their boxes."""

    def resize(self, image: Tensor, target: Any = None) -> Any:
        """Returns both as they are."""
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Returns the result as it is: boxes in pixels of the given image."""
        return result


def at_corners(masks: Tensor) -> Tensor:
    """Returns masks `(N, H, W)` of 0 and 1 as they are at the upper left corner of each pixel, bfloat16, in quarters.

    torchvision cuts the targets of its mask head out with a RoIAlign (`aligned=False`) that takes the value of a pixel
    for that of its corner. Of masks as they are, all targets would lie half a pixel left of and above the objects, and
    the masks of small ones would miss them: 10 pixels across, a perfect head would reach an IoU of 0.87. Beyond the
    image, a mask goes on as at its border, as RoIAlign takes it on the other two sides.
    """
    ones = (masks != 0).to(torch.uint8)  # 4 at most in sum: a quarter of the memory, on a GPU beside the model
    rows = ones + torch.cat([ones[:, :1], ones[:, :-1]], dim=1)
    quarters = rows + torch.cat([rows[:, :, :1], rows[:, :, :-1]], dim=2)
    return quarters.to(torch.bfloat16).div_(4)  # exactly


def paste_part(mask: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[int, int, Tensor]:
    """Returns the first row and column of the part of an image that a box touches, and the mask in it, float32.

    Each pixel's centre is looked up in the box at sub-pixel places, equal to detectron2's to the pixel.

    Args:
        mask: probabilities `(1, M, M)` within the box.
        box: `(4,)` x1, y1, x2, y2 in pixels.
        size: `(H, W)` of the image.
    """
    left, top = (box[:2].floor() - 1).clamp(min=0).to(torch.int64).tolist()
    right, bottom = (box[2:].ceil() + 1).to(torch.int64).tolist()
    xs = _places(left, min(right, size[1]), box[0], box[2])
    ys = _places(top, min(bottom, size[0]), box[1], box[3])
    grid = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=2)
    return top, left, F.grid_sample(mask[None].float(), grid[None], align_corners=False)[0, 0]


def _places(start: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Returns where the centres of pixels `start` to `end` lie in a box side from `low` to `high`: -1 to 1 within."""
    centres = torch.arange(start, max(start, end), dtype=torch.float32, device=low.device) + 0.5
    return (centres - low) / (high - low).clamp(min=1e-6) * 2 - 1


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns masks `(N, 1, M, M)` within boxes `(N, 4)` as `(N, 1, H, W)` of an image, 0 outside of the boxes."""
    pasted = masks.new_zeros(len(masks), 1, *size)
    for number, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        top, left, part = paste_part(mask, box, size)
        pasted[number, 0, top : top + part.shape[0], left : left + part.shape[1]] = part
    return pasted
