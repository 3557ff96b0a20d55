"""From the list of images to what a method is fed: a crop and the patches that each branch sees."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from pretrain.data.augment import PretrainAugment
from pretrain.data.reduced_jpeg import ReducedImage
from pretrain.data.sources import ImageList
from pretrain.training.loader import sample_rng
from pretrain.training.workers import Batches

MakeItem = Callable[[Image.Image, np.random.Generator], dict[str, Tensor]]
PatchIds = Callable[[tuple[int, int], np.random.Generator], dict[str, np.ndarray]]


class Views(Dataset[dict[str, Tensor]]):
    """Items made of one image each. What an item holds depends on (seed, epoch, index) only.

    Args:
        images: readable images.
        seed: of all that is random in the items.
        make: returns the item of an RGB image, all that is random drawn from the generator.
        reduced_side: None, or pixels of the one crop that `make` cuts from a JPEG: see `reduced_jpeg`.
    """

    def __init__(self, images: ImageList, seed: int, make: MakeItem, reduced_side: int | None = None) -> None:
        self.images, self.seed, self.make, self.reduced_side = images, seed, make, reduced_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns the item of `(epoch, index, repeat)`.

        Raises:
            ValueError: the image was readable at the start of the run and is not any more.
        """
        epoch, index, _ = key
        return self.make(self.read(index), sample_rng(self.seed, epoch, index))

    def read(self, index: int) -> Any:
        """Returns what `make` takes, which may be decoded later."""
        if self.reduced_side is None:
            return self.images.read(index)
        return ReducedImage(self.images, index, self.reduced_side)


class CropAndPatches:
    """Makes items with `image`, a crop, uint8 `(3, S, S)`, and patch indices.

    Args:
        augment: makes the crop.
        patch_size: pixels.
        patch_ids: draws named int64 patch indices, row-major, on a grid (H, W) of patches.
    """

    def __init__(self, augment: PretrainAugment, patch_size: int, patch_ids: PatchIds) -> None:
        self.augment, self.patch_ids = augment, patch_ids
        self.grid_size = (augment.img_size // patch_size, augment.img_size // patch_size)

    def draw_ids(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Returns the patch indices of an item: they are drawn before its crop."""
        return {name: torch.from_numpy(values) for name, values in self.patch_ids(self.grid_size, rng).items()}

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        ids = self.draw_ids(rng)
        return {"image": self.augment(image, rng), **ids}


def spread_items(views: Views, num_items: int, workers: int, epoch: int = 0, batch_size: int | None = None) -> Batches:
    """Returns the items of `num_items` images spread evenly over the list, each once and the same whenever called.

    Args:
        views: at least `num_items` of them.
        num_items: how many.
        workers: data processes.
        epoch: whose crops and masks.
        batch_size: items are stacked; single ones where it is None.
    """
    keys: Any = [(epoch, i * len(views) // num_items, 0) for i in range(num_items)]
    if batch_size is not None:
        keys = list(BatchSampler(keys, batch_size, drop_last=False))
    return Batches(views, keys, workers)
