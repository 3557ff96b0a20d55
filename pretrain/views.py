"""From the list of images to what a method is fed: a crop and the patches that each branch sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.augment import PretrainAugment
from pretrain.images import UnreadableImage, read_image
from pretrain.loader import sample_rng
from pretrain.masking import split_halves
from pretrain.signals import ignore_in_worker
from pretrain.sources import ImageList
from splitmask_backbones.errors import UserError


class SplitViews(Dataset[dict[str, Tensor]]):
    """Items of SplitMask: one crop feeds both branches. What an item holds depends on (seed, epoch, index) only.

    Args:
        images: readable images.
        augment: makes the crop.
        patch_size: pixels.
        mask: "block" or "uniform".
        mask_ratio: share of patches that a branch does not see.
        seed: of crops and masks.
    """

    def __init__(
        self, images: ImageList, augment: PretrainAugment, patch_size: int, mask: str, mask_ratio: float, seed: int
    ) -> None:
        self.images, self.augment, self.mask, self.mask_ratio, self.seed = images, augment, mask, mask_ratio, seed
        self.grid_size = (augment.img_size // patch_size, augment.img_size // patch_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns `image` uint8 `(3, S, S)`, `ids_a` and `ids_b` int64 `(K,)` for `(epoch, index, repeat)`.

        Raises:
            ValueError: the image was readable at the start of the run and is not any more.
        """
        epoch, index, _ = key
        rng = sample_rng(self.seed, epoch, index)
        path = self.images.path(self.images.names[index])
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise UserError(
                f"{path} could be read when the run started and cannot be now ({error}): restore it, then --resume"
            ) from None
        ids_a, ids_b = split_halves(self.mask, self.grid_size, rng, self.mask_ratio)
        return {
            "image": self.augment(image, rng),
            "ids_a": torch.from_numpy(ids_a),
            "ids_b": torch.from_numpy(ids_b),
        }


def first_crops(views: SplitViews, num_images: int, workers: int) -> Iterator[Tensor]:
    """Yields the first epoch's crops of `num_images` images spread evenly over the list: uint8 `(1, 3, S, S)` each."""
    total = len(views)
    keys = [(0, i * total // num_images, 0) for i in range(num_images)]
    loader = DataLoader(
        views, sampler=keys, batch_size=None, num_workers=workers, worker_init_fn=lambda _: ignore_in_worker()
    )
    for item in loader:
        yield item["image"][None]
