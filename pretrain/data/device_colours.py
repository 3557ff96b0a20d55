"""`augment.three_augment` for a whole batch at once, on a CPU or on a card: Pillow's bytes.

Pillow works in whole numbers here, except for the change of brightness, contrast and saturation, which it makes in
float32, as is done here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.augment import BLUR, GRAY, SOLARISE, Colours

_PASSES = 3
"""Box filters that Pillow puts one after the other for a Gaussian one."""
_BITS = 24
"""Fractional bits of the weights of a box filter."""


@torch.no_grad()
def change_colours(images: Tensor, drawn: list[Colours]) -> Tensor:
    """Returns uint8 `(B, 3, H, W)` of RGB images of that form, each changed as was drawn for it."""
    image = images.int()

    def sent(numbers: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:  # without waiting for the device
        return torch.tensor(numbers, dtype=dtype).to(images.device, non_blocking=True)

    change = sent([one.change for one in drawn])[:, None, None, None]
    image = torch.where(change == GRAY, luminance(image), image)
    image = torch.where((change == SOLARISE) & (image >= 128), 255 - image, image)
    blurred = [row for row, one in enumerate(drawn) if one.change == BLUR]
    if blurred:
        rows = sent(blurred)
        image[rows] = gaussian_blur(image[rows], np.array([drawn[row].radius for row in blurred]))
    factors, order = sent([one.factors for one in drawn], torch.float32), sent([one.order for one in drawn])
    for kind, factor in zip(order.T, factors.gather(1, order).T, strict=True):
        image = enhance(image, kind[:, None, None, None], factor[:, None, None, None])
    return image.to(torch.uint8)


def luminance(image: Tensor) -> Tensor:
    """Returns int32 `(B, 1, H, W)` of RGB int32 `(B, 3, H, W)`, as `convert("L")`: ITU-R 601-2 in 16 bits."""
    red, green, blue = image.split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def enhance(image: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Returns int32 `(B, 3, H, W)` that lies `factor` times as far from black, mean gray or its own gray.

    Args:
        image: int32 `(B, 3, H, W)`.
        kind: `(B, 1, 1, 1)`: 0 brightness, 1 contrast, 2 saturation, as Pillow's `ImageEnhance` has them.
        factor: float32 `(B, 1, 1, 1)`.
    """
    gray = luminance(image)
    mean = (gray.sum((1, 2, 3), keepdim=True).double() / gray[0].numel() + 0.5).int()
    origin = torch.where(kind == 0, 0, torch.where(kind == 1, mean, gray))
    return (origin + factor * (image - origin)).clamp(0, 255).int()


def box_weights(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns of the box filters for Gaussian ones, `(B,)` each: whole radius, weight within it and just beyond it.

    Extended box filters (Gwosdek et al. 2011) in the float32 arithmetic of Pillow's BoxBlur.c.
    """
    one = np.float32(1)
    variance = radius.astype(np.float32) ** 2 / np.float32(_PASSES)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length.astype(np.float64) - 1.0) / 2.0).astype(np.float32)
    beyond = (2 * whole + one) * (whole * (whole + one) - 3 * variance)
    beyond /= 6 * (variance - (whole + one) * (whole + one))
    extended = whole + beyond
    reach = extended.astype(np.int64)
    inner = (np.float32(1 << _BITS) / (extended * 2 + one)).astype(np.int64)
    return reach, inner, ((1 << _BITS) - (2 * reach + 1) * inner) // 2


def gaussian_blur(image: Tensor, radius: np.ndarray) -> Tensor:
    """Returns int32 `(B, 3, H, W)` of that form, as Pillow's `GaussianBlur` with the `radius` `(B,)` of each."""
    reach, inner, outer = box_weights(radius)
    most = int(reach.max()) + 1
    distance = np.abs(np.arange(-most, most + 1))
    taps = np.where(distance <= reach[:, None], inner[:, None], 0)
    taps = np.where(distance == reach[:, None] + 1, outer[:, None], taps)  # (B, 2 * most + 1)
    columns = torch.from_numpy(taps).to(image.device, non_blocking=True)[:, :, None, None, None].unbind(1)
    image = image.long()
    for _ in range(2):  # rows, then columns
        places = torch.arange(-most, image.shape[-1] + most, device=image.device).clamp(0, image.shape[-1] - 1)
        for _ in range(_PASSES):
            wide = image[..., places]
            windows = wide.unfold(-1, image.shape[-1], 1).unbind(-2)
            total = columns[0] * windows[0]
            for weight, window in zip(columns[1:], windows[1:], strict=True):
                total.addcmul_(window, weight)
            image = (total + (1 << (_BITS - 1))) >> _BITS
        image = image.transpose(2, 3)
    return image.int()
