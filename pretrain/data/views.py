"""From the list of images to what a method is fed: a crop and the patches that each branch sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.data.augment import PretrainAugment
from pretrain.data.decode import UnreadableImage, read_image
from pretrain.data.masking import beit_mask, split_halves
from pretrain.data.sources import ImageList
from pretrain.training.loader import sample_rng
from pretrain.training.signals import ignore_in_worker
from splitmask_backbones.errors import UserError


class Views(Dataset[dict[str, Tensor]]):
    """Items made of one image each. What an item holds depends on (seed, epoch, index) only.

    Args:
        images: readable images.
        seed: of all that is random in the items.
    """

    def __init__(self, images: ImageList, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns the item of `(epoch, index, repeat)`.

        Raises:
            ValueError: the image was readable at the start of the run and is not any more.
        """
        epoch, index, _ = key
        path = self.images.path(self.images.names[index])
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise UserError(
                f"{path} could be read when the run started and cannot be now ({error}): restore it, then --resume"
            ) from None
        return self.make(image, sample_rng(self.seed, epoch, index))

    def make(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """Returns the item of an image; to be overridden."""
        raise NotImplementedError


class CropViews(Views):
    """A crop and the patches that the method hides or shows.

    Args:
        images: readable images.
        augment: makes the crop.
        patch_size: pixels.
        seed: of crops and masks.
    """

    def __init__(self, images: ImageList, augment: PretrainAugment, patch_size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.augment = augment
        self.grid_size = (augment.img_size // patch_size, augment.img_size // patch_size)

    def ids(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns int64 patch indices by name; to be overridden."""
        raise NotImplementedError

    def make(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """Returns `image` uint8 `(3, S, S)` and the patch indices, int64."""
        ids = {name: torch.from_numpy(values) for name, values in self.ids(rng).items()}
        return {"image": self.augment(image, rng), **ids}


class SplitViews(CropViews):
    """Items of SplitMask: one crop feeds both branches; `ids_a` and `ids_b` are int64 `(K,)`.

    Args:
        images, augment, patch_size, seed: as for any crop.
        mask: "block" or "uniform".
        mask_ratio: share of patches that a branch does not see.
    """

    def __init__(
        self, images: ImageList, augment: PretrainAugment, patch_size: int, mask: str, mask_ratio: float, seed: int
    ) -> None:
        super().__init__(images, augment, patch_size, seed)
        self.mask, self.mask_ratio = mask, mask_ratio

    def ids(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns `ids_a` and `ids_b`."""
        ids_a, ids_b = split_halves(self.mask, self.grid_size, rng, self.mask_ratio)
        return {"ids_a": ids_a, "ids_b": ids_b}


class BeitViews(CropViews):
    """Items of BEiT: a crop and `ids_masked`, int64 `(K,)`, of a block mask with 75 of 196 patches (their share)."""

    def ids(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns `ids_masked`."""
        return {"ids_masked": beit_mask(self.grid_size, rng)}


def first_crops(views: CropViews, num_images: int, workers: int) -> Iterator[Tensor]:
    """Yields the first epoch's crops of `num_images` images spread evenly over the list: uint8 `(1, 3, S, S)` each."""
    total = len(views)
    keys = [(0, i * total // num_images, 0) for i in range(num_images)]
    loader = DataLoader(
        views, sampler=keys, batch_size=None, num_workers=workers, worker_init_fn=lambda _: ignore_in_worker()
    )
    for item in loader:
        yield item["image"][None]
