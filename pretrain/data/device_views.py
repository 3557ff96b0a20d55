"""Crops made where the method is: workers draw and send what lies in each box, the device resamples whole batches.

The images are those of `Views`, byte for byte. Where all of them are cached, and a card has room, their pixels lie
there from the start: workers then read no image, and send a few numbers for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pretrain.data.augment import Colours, Drawn
from pretrain.data.cache import CachedImages
from pretrain.data.device_colours import change_colours
from pretrain.data.device_crops import OFFSET, resample
from pretrain.data.views import CropAndPatches, Views
from pretrain.training.loader import sample_rng

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RESIDENT_SHARE, FREE_SHARE = 0.25, 0.5
"""Of a card's memory that cached images may take, and of what others have left of it."""
_LARGE = 16
"""A box of more pixels than that many crops is resized by the worker: sending it would take longer."""


@dataclass(frozen=True)
class Boxes:
    """The crops of a batch before they are resampled. Fabric and the loader move it like a tensor.

    Attributes:
        pixels: uint8 `(P, 3)`, the boxes row by row, one behind the other; None where the device has the images.
        table: int64 `(B, 5)`, see `device_crops`.
        colours: what was drawn for each; None where they stay.
    """

    pixels: Tensor | None
    table: np.ndarray
    colours: list[Colours] | None

    def to(self, device: torch.device | str) -> Boxes:
        """Returns it with the pixels on a device; a GPU copies while the CPU goes on, as Fabric does with tensors."""
        at_once = torch.device(device).type == "cuda"
        return self if self.pixels is None else replace(self, pixels=self.pixels.to(device, non_blocking=at_once))

    def pin_memory(self) -> Boxes:
        """Returns it with the pixels in memory that a card copies from by itself."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.pin_memory())

    def images(self, img_size: int, resident: Tensor | None) -> Tensor:
        """Returns uint8 `(B, 3, img_size, img_size)`, resampled where the pixels are.

        Args:
            img_size: side in pixels.
            resident: of `resident_pixels`.
        """
        pixels = resident if self.pixels is None else self.pixels
        assert pixels is not None
        crops = resample(pixels, self.table, img_size)
        return crops if self.colours is None else change_colours(crops, self.colours)


class BoxViews(Dataset[dict[str, Any]]):
    """Items of `Views` whose crop is still to be made: `boxes`, of one image, in place of `image`.

    Args:
        views: made by `CropAndPatches`.
        is_resident: whether the device has the images: their sides are all that is read.
    """

    def __init__(self, views: Views, is_resident: bool = False) -> None:
        assert isinstance(views.make, CropAndPatches)
        self.views, self.images, self.make, self.is_resident = views, views.images, views.make, is_resident

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any]:
        """Returns the item of `(epoch, index, repeat)`.

        Raises:
            ValueError: the image was readable at the start of the run and is not any more.
        """
        epoch, index, _ = key
        rng = sample_rng(self.views.seed, epoch, index)
        ids = self.make.draw_ids(rng)
        if self.is_resident:
            assert isinstance(self.images, CachedImages)
            offset, height, width = self.images.place(index)
            drawn = self.make.augment.draw(width, height, rng)
            left, top, box_width, box_height = drawn.box
            row = (offset // 3 + top * width + left, width, box_height, box_width, drawn.flipped)
            return {"boxes": Boxes(None, _table(row), _colours(drawn)), **ids}
        drawn, pixels = self._drawn(index, rng)
        height, width = pixels.shape[:2]
        side = self.make.augment.img_size
        if width * height > _LARGE * side * side:
            pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
            height = width = side
        row = (0, width, height, width, drawn.flipped)
        return {"boxes": Boxes(torch.from_numpy(np.array(pixels).reshape(-1, 3)), _table(row), _colours(drawn)), **ids}

    def _drawn(self, index: int, rng: np.random.Generator) -> tuple[Drawn, np.ndarray]:
        """Returns what is drawn for an image, and the pixels in its box."""
        stored = self.images.stored(index) if isinstance(self.images, CachedImages) else None
        if stored is not None:
            drawn = self.make.augment.draw(stored.shape[1], stored.shape[0], rng)
            left, top, width, height = drawn.box
            return drawn, stored[top : top + height, left : left + width]
        image = self.views.read(index)
        drawn = self.make.augment.draw(image.width, image.height, rng)
        left, top, width, height = drawn.box
        return drawn, np.asarray(image.crop((left, top, left + width, top + height)))


def _table(row: tuple[int, int, int, int, bool]) -> np.ndarray:
    return np.array([row], dtype=np.int64)


def _colours(drawn: Drawn) -> list[Colours] | None:
    return None if drawn.colours is None else [drawn.colours]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the batch of items of `BoxViews`."""
    boxes: list[Boxes] = [item.pop("boxes") for item in items]
    table = np.concatenate([one.table for one in boxes])
    parts = [one.pixels for one in boxes if one.pixels is not None]
    if parts:
        table[:, OFFSET] = np.cumsum([0] + [len(part) for part in parts[:-1]])
    colours = [one for box in boxes for one in box.colours or ()]
    return {"boxes": Boxes(torch.cat(parts) if parts else None, table, colours or None), **default_collate(items)}


def resident_pixels(views: Views, device: torch.device) -> Tensor | None:
    """Returns all cached images on a device, uint8 `(P, 3)`; None where some are not cached, or it has no room.

    On a CPU they stay in the cache's file, which is mapped into memory and must not be written to.
    """
    images = views.images
    if not isinstance(images, CachedImages) or not images.is_complete():
        return None
    assert images.cache is not None
    if device.type != "cpu" and not fits_on_card(images.cache.num_bytes, device):
        return None
    mapped = images.cache.pixels()
    if mapped is None:
        return None
    with warnings.catch_warnings():
        # torch knows no tensors that are only read; crops are made of copies.
        warnings.filterwarnings("ignore", "The given NumPy array is not writ(e)?able")
        pixels = torch.from_numpy(mapped).reshape(-1, 3)
    return pixels if device.type == "cpu" else pixels.to(device)


def fits_on_card(num_bytes: float, device: torch.device) -> bool:
    """Returns whether cached images of that size may lie in a card's memory."""
    free, total = torch.cuda.mem_get_info(device)
    return num_bytes <= min(RESIDENT_SHARE * total, FREE_SHARE * free)


class DeviceBatches(Iterator[Any]):
    """Batches with `image` in place of `boxes`, made on the device.

    Args:
        batches: of `collate`.
        fabric: knows the device.
        img_size: side of the crops in pixels.
        resident: of `resident_pixels`.
    """

    def __init__(self, batches: Iterator[Any], fabric: Fabric, img_size: int, resident: Tensor | None) -> None:
        self._batches, self._fabric, self._img_size, self._resident = batches, fabric, img_size, resident

    def __next__(self) -> dict[str, Tensor]:
        batch = self._fabric.to_device(next(self._batches))
        boxes: Boxes = batch.pop("boxes")
        return {"image": boxes.images(self._img_size, self._resident), **batch}

    def close(self) -> None:
        """Ends the workers."""
        getattr(self._batches, "close", lambda: None)()
