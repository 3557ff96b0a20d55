"""Pillow's crop, resize and flip for a whole batch at once, as two batched matrix products: on a CPU or on a card.

The result is Pillow's to the last bit. Its antialiased bicubic filter multiplies bytes by weights of 22 fractional
bits, adds them as integers and rounds to a byte after each of its two passes. Here a weight is cut into two halves of
11 bits. All products and sums of a half are then whole numbers below 2**24 (where a side shrinks to an eighth or more),
which float32 holds exactly in whatever order they are added, and which TF32 (11 bits a factor) multiplies exactly.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain.training.distributed import any_algorithm

_BITS = 22
"""Fractional bits of a weight in Pillow (`PRECISION_BITS` of its Resample.c)."""
_HALF = 4096
_SUPPORT = 2.0
"""Reach of the bicubic filter in pixels of the smaller image."""
_PIXELS_AT_ONCE = 1 << 24
"""Pixels of padded boxes that are resampled together; each takes some 40 bytes meanwhile."""

OFFSET, STRIDE, HEIGHT, WIDTH, FLIPPED = range(5)
"""Columns of a table of boxes, in pixels: where the first one lies, how far apart two rows are, sides; 0 or 1."""


def bicubic(x: Tensor) -> Tensor:
    """Returns the cubic convolution kernel of Keys (1981) with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < _SUPPORT, far, 0.0))


def weights(sides: Tensor, out_size: int, longest: int) -> Tensor:
    """Returns the matrices of one axis: whole numbers in two halves, float32 `(B, longest, 2, out_size)`.

    Column i of the first half times 4096 plus column i of the second is the weight of each pixel in output pixel i,
    times 2**22. The kernel is stretched by the scale where the image is made smaller, and what would lie outside the
    box is left out (Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`).

    Args:
        sides: pixels of each box along the axis, int64 `(B,)`, at least 1.
        out_size: pixels of the result.
        longest: at least the greatest side.
    """
    scale = sides.double()[:, None] / out_size
    stretch = scale.clamp(min=1)
    centre = (torch.arange(out_size, dtype=torch.float64, device=sides.device) + 0.5) * scale  # (B, out_size)
    first = (centre - _SUPPORT * stretch + 0.5).clamp(min=0).long()
    end = torch.minimum((centre + _SUPPORT * stretch + 0.5).long(), sides[:, None])
    taps = 2 * math.ceil(_SUPPORT * max(1.0, longest / out_size)) + 1
    place = first[..., None] + torch.arange(taps, device=sides.device)  # (B, out_size, taps)
    found = bicubic((place - centre[..., None] + 0.5) / stretch[..., None])
    found = torch.where(place < end[..., None], found, 0.0)
    found = found / found.sum(-1, keepdim=True) * 2**_BITS
    whole = torch.trunc(found + torch.copysign(torch.full_like(found, 0.5), found))
    high = torch.round(whole / _HALF)
    halves = torch.stack([high, whole - _HALF * high], dim=1).float()
    # No place occurs twice, so that the result is the same each time on a card as well.
    dense = torch.zeros(len(sides), 2, out_size, longest + taps, device=sides.device)
    with any_algorithm():
        dense.scatter_(-1, place[:, None].expand_as(halves), halves)
    return dense[..., :longest].permute(0, 3, 1, 2)


def _to_bytes(sums: Tensor) -> Tensor:
    """Returns `(..., out_size)`, whole numbers in 0..255, of sums by `weights` `(..., 2 * out_size)`."""
    high, low = sums.to(torch.int32).chunk(2, dim=-1)
    return ((high * _HALF + low + (1 << (_BITS - 1))) >> _BITS).clamp_(0, 255)


@torch.no_grad()
def resample(pixels: Tensor, boxes: np.ndarray, out_size: int) -> Tensor:
    """Returns uint8 `(B, 3, out_size, out_size)`: each box as Pillow's `resize` with BICUBIC makes it, and flipped.

    Args:
        pixels: uint8 `(P, 3)`, of any number of images, row by row.
        boxes: int64 `(B, 5)`: `OFFSET, STRIDE, HEIGHT, WIDTH, FLIPPED`. In main memory: its numbers are needed here,
            and of a card one would have to wait for them.
        out_size: side in pixels.
    """
    result = torch.empty(len(boxes), 3, out_size, out_size, dtype=torch.uint8, device=pixels.device)
    # Pillow's rule of 13.0.
    tall = boxes[:, HEIGHT] - out_size > np.maximum(2 * (boxes[:, WIDTH] - out_size), 0)
    tall &= tall_first()
    for down_first in (False, True):
        for rows in _groups(boxes, np.flatnonzero(tall == down_first)):
            made = _resample(pixels, boxes[rows], out_size, down_first)
            result[_sent(rows, pixels.device)] = made
    return result


@functools.cache
def tall_first() -> bool:
    """Returns whether this Pillow shrinks the height first where that is much the longer side, as it does from 13.0 on.

    It rounds between its two passes: their order shows in an image of which both make the most.
    """
    image = np.random.default_rng(0).integers(0, 2, (64, 9, 3), dtype=np.uint8) * 255
    theirs = Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC)
    ours = _resample(torch.from_numpy(image).flatten(0, 1), np.array([[0, 9, 64, 9, 0]]), 8, True)
    return np.array_equal(np.asarray(theirs), ours[0].permute(1, 2, 0).numpy())


def _groups(boxes: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Returns the rows in groups of like size, so that little of what they are padded to is wasted."""
    groups: list[list[int]] = []
    height = 0
    for row in rows[np.lexsort((boxes[rows, HEIGHT], boxes[rows, WIDTH]))]:  # by width
        height = max(height, int(boxes[row, HEIGHT]))
        if not groups or (len(groups[-1]) + 1) * height * int(boxes[row, WIDTH]) > _PIXELS_AT_ONCE:
            groups.append([])
            height = int(boxes[row, HEIGHT])
        groups[-1].append(int(row))
    return [np.array(group) for group in groups]


def _resample(pixels: Tensor, boxes: np.ndarray, out_size: int, down_first: bool) -> Tensor:
    """Returns what `resample` does, all padded to the greatest sides; `down_first` turns the order of the passes."""
    table = _sent(boxes, pixels.device)[:, :, None, None]
    height, width = (int(side) for side in boxes[:, [HEIGHT, WIDTH]].max(axis=0))
    y = torch.arange(height, device=pixels.device)[:, None].minimum(table[:, HEIGHT] - 1)
    x = torch.arange(width, device=pixels.device).minimum(table[:, WIDTH] - 1)
    image = pixels[table[:, OFFSET] + y * table[:, STRIDE] + x].permute(0, 3, 1, 2)  # (b, 3, H, W)
    down = weights(table[:, HEIGHT, 0, 0], out_size, height)
    across = weights(table[:, WIDTH, 0, 0], out_size, width)
    across = torch.where(table[:, FLIPPED, None] > 0, across.flip(-1), across)
    first, second = (down, across) if down_first else (across, down)
    image = image.transpose(2, 3) if down_first else image
    image = _apply(_apply(image, first).transpose(2, 3), second)
    return (image if down_first else image.transpose(2, 3)).to(torch.uint8)


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Returns a few numbers on the device, without waiting for what it does."""
    return torch.from_numpy(numbers).to(device, non_blocking=True)


def _apply(image: Tensor, matrices: Tensor) -> Tensor:
    """Returns `(b, 3, R, out_size)` of an image `(b, 3, R, K)` and `weights` `(b, K, 2, out_size)`."""
    rows = image.float().flatten(1, 2)
    return _to_bytes(rows @ matrices.flatten(2)).unflatten(1, (3, image.shape[2]))
