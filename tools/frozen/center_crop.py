"""Images as a frozen encoder sees them: one center crop each, in order, in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from pretrain.data.augment import to_tensor
from pretrain.data.sources import ImageList
from tools.common.shards import Prepared, shard_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TEST_BATCH = 64
"""Images per batch of a test: fixed, so that a result does not depend on the training's batch."""


OBLONG = 8
"""Short sides that an image is long at most to be resized as a whole: one of 8000 x 1 pixels would take 8 GB."""


class CenterCrop:
    """Turns an image into the center crop of a test: short side to `img_size / test_crop`, bicubic, then the centre.

    The same pixels as timm's and torchvision's `Resize` and `CenterCrop`, but for roundings of very
    oblong ones.
    """

    def __init__(self, img_size: int, test_crop: float) -> None:
        self.img_size = img_size
        self.short_side = max(img_size, math.floor(img_size / test_crop))

    def __call__(self, image: Image.Image) -> Tensor:
        shorter = min(image.size)
        # Integers: a factor of floats would round some sides to another pixel.
        sides = [int(self.short_side * side / shorter) for side in image.size]
        starts = [round((side - self.img_size) / 2.0) for side in sides]
        if max(sides) <= OBLONG * self.short_side:
            left, top = starts
            resized = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
            return to_tensor(resized.crop((left, top, left + self.img_size, top + self.img_size)))
        # Of an oblong image no more is made than the crop, and beside it what bicubic weights reach.
        reach = 3 * math.ceil(max(1.0, self.short_side / shorter))
        spans = [
            (max(0, start - reach), min(side, start + self.img_size + reach)) for start, side in zip(starts, sides)
        ]
        (x0, x1), (y0, y1) = spans
        across, down = (own / made for own, made in zip(image.size, sides, strict=True))
        box = (x0 * across, y0 * down, x1 * across, y1 * down)
        resized = image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box)
        left, top = starts[0] - x0, starts[1] - y0
        return to_tensor(resized.crop((left, top, left + self.img_size, top + self.img_size)))


def center_batches(
    fabric: Fabric, images: ImageList, crop: CenterCrop, workers: int, title: str, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields indices int64 `(B,)` and crops uint8 `(B, 3, S, S)` on the device, as `shard_of` does."""
    for indices, crops in shard_of(fabric, Prepared(images, crop), workers, title, TEST_BATCH, start):
        yield indices, fabric.to_device(crops)
