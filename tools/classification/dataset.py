"""Labelled images as tensors: augmented for training, the central crop for tests, in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.data.sources import ImageList
from pretrain.training.loader import sample_rng
from tools.classification.augment import CentralCrop, TrainAugment
from tools.classification.data import LabelledImages
from tools.classification.recipes import ClsRecipe
from tools.finetuning.shares import Prepared, share_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TEST_BATCH = 64
"""Images per batch of a test: fixed, so that a result does not depend on the training's batch."""


class TrainingCrops(Dataset[dict[str, Tensor]]):
    """Augmented images; what an item holds depends on (seed, epoch, index, repeat) only."""

    def __init__(self, images: LabelledImages, recipe: ClsRecipe) -> None:
        self.images, self.seed, self.augment = images, recipe.seed, TrainAugment(recipe)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns `image` uint8 `(3, S, S)` and `label` int64 for a key `(epoch, index, repeat)`."""
        epoch, index, repeat = key
        rng = sample_rng(self.seed, epoch, index, repeat)
        image = self.augment(self.images.images.read(index), rng)
        return {"image": image, "label": torch.tensor(self.images.labels[index])}


def central_batches(
    fabric: Fabric, images: ImageList, crop: CentralCrop, workers: int, title: str, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields indices int64 `(B,)` and crops uint8 `(B, 3, S, S)` on the device, as `share_of` does."""
    for indices, crops in share_of(fabric, Prepared(images, crop), workers, title, TEST_BATCH, start):
        yield indices, fabric.to_device(crops)
