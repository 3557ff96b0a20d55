"""Images as a frozen encoder sees them: one central crop each, in order, in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from pretrain.data.augment import to_tensor
from pretrain.data.sources import ImageList
from tools.finetuning.shares import Prepared, share_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TEST_BATCH = 64
"""Images per batch of a test: fixed, so that a result does not depend on the training's batch."""


class CentralCrop:
    """Turns an image into the central crop of a test: short side to `img_size / test_crop`, bicubic, then the centre.

    The same pixels as timm's and torchvision's `Resize` and `CenterCrop`.
    """

    def __init__(self, img_size: int, test_crop: float) -> None:
        self.img_size = img_size
        self.short_side = max(img_size, math.floor(img_size / test_crop))

    def __call__(self, image: Image.Image) -> Tensor:
        shorter = min(image.size)
        # Integers: a factor of floats would round some sides to another pixel.
        width, height = (int(self.short_side * side / shorter) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.img_size) / 2.0), round((height - self.img_size) / 2.0)
        return to_tensor(resized.crop((left, top, left + self.img_size, top + self.img_size)))


def central_batches(
    fabric: Fabric, images: ImageList, crop: CentralCrop, workers: int, title: str, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields indices int64 `(B,)` and crops uint8 `(B, 3, S, S)` on the device, as `share_of` does."""
    for indices, crops in share_of(fabric, Prepared(images, crop), workers, title, TEST_BATCH, start):
        yield indices, fabric.to_device(crops)
