"""Labelled images as tensors: augmented for training, the central crop for tests, in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.data.decode import UnreadableImage, read_image
from pretrain.training.loader import sample_rng, start_worker
from splitmask_backbones.errors import UserError
from tools.classification.augment import CentralCrop, TrainAugment
from tools.classification.data import LabelledImages
from tools.classification.recipes import ClsRecipe
from tools.finetuning.progress import tracked

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TEST_BATCH = 64
"""Images a batch of a test: fixed, so that a result does not depend on the training's batch."""


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
        image = self.augment(read_again(self.images.path(index)), rng)
        return {"image": image, "label": torch.tensor(self.images.labels[index])}


class CentralCrops(Dataset[tuple[int, Tensor]]):
    """Central crops: `(index, uint8 (3, S, S))`."""

    def __init__(self, paths: list[Path], crop: CentralCrop) -> None:
        self.paths, self.crop = paths, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """Returns the index and the crop."""
        return index, self.crop(read_again(self.paths[index]))


def read_again(path: Path) -> Any:
    """Returns an image that was readable when the run started.

    Raises:
        ValueError: it is not any more.
    """
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise UserError(
            f"{path} could be read when the run started and cannot be now ({error}): restore it, then --resume"
        ) from None


def central_batches(
    fabric: Fabric, paths: list[Path], crop: CentralCrop, workers: int, title: str, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields indices int64 `(B,)` and crops uint8 `(B, 3, S, S)` on the device, of this process's share of the images.

    Shows progress with the time left.

    Args:
        fabric: device and processes.
        paths: all images.
        crop: of the test.
        workers: data processes.
        title: in front of the progress.
        start: images before it are skipped.
    """
    own = range(start + fabric.global_rank, len(paths), fabric.world_size)
    loader = DataLoader(
        CentralCrops(paths, crop),
        batch_size=TEST_BATCH,
        sampler=own,
        num_workers=workers,
        worker_init_fn=start_worker if workers else None,
        pin_memory=fabric.device.type == "cuda",
    )
    for indices, crops in tracked(loader, len(loader), title, fabric.is_global_zero):
        yield indices, fabric.to_device(crops)
