"""Labelled images as tensors, augmented for training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.training.loader import sample_rng
from tools.classification.augment import TrainAugment
from tools.classification.data import LabelledImages
from tools.classification.recipes import ClsRecipe


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
