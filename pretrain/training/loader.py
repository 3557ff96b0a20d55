"""Batches in an order that depends on the seed alone: any step can be reached without reading an image."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from pretrain.training.workers import Batches
from splitmask_backbones.errors import UserError


def sample_rng(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """Returns the generator of one sample in one epoch, the same in any worker of any run.

    `repeat` counts the appearances of the sample in that epoch (repeated augmentation).
    """
    return np.random.default_rng([seed, epoch, index, repeat] if repeat else [seed, epoch, index])


def steps_per_epoch(num_items: int, batch_size: int) -> int:
    """Returns `floor(num_items / batch_size)`.

    Raises:
        ValueError: the batch is larger than the data set.
    """
    if batch_size > num_items:
        raise UserError(
            f"--batch-size {batch_size} is larger than the data set of {num_items} images: "
            + (f"use --batch-size {num_items} or less, or more images" if num_items > 1 else "more are needed")
        )
    return num_items // batch_size


def check_divisible(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raises ValueError where the images of a step cannot be dealt out evenly."""
    if batch_size % (world_size * accumulate):
        raise UserError(
            f"--batch-size {batch_size} must be a multiple of processes x accumulation steps = "
            f"{world_size} x {accumulate}"
        )


class StepBatches(Sampler[list[tuple[int, int, int]]]):
    """Keys `(epoch, index, repeat)` of this rank's micro-batches, from a step on.

    With `repeats` above 1 (repeated augmentation, Hoffer et al.; DeiT), each image of the epoch's permutation comes
    `repeats` times in a row, `repeat` counting from 0, and the epoch ends after the same number of steps: it holds
    only the first `1 / repeats` of the permutation. Ours: the repeats of an image are neighbours in the global batch,
    while DeiT's stand on different processes; without batch norm the gradient of the batch is the same.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        start_step: int,
        total_steps: int,
        rank: int,
        world_size: int,
        accumulate: int,
        repeats: int = 1,
    ) -> None:
        check_divisible(batch_size, world_size, accumulate)
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.start_step, self.total_steps = start_step, total_steps
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.repeats = repeats
        self.steps_per_epoch = steps_per_epoch(num_items, batch_size)

    def __len__(self) -> int:
        return (self.total_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        local = self.batch_size // (self.world_size * self.accumulate)
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.start_step, self.total_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = np.random.default_rng([self.seed, epoch]).permutation(self.num_items), epoch
            first = place * self.batch_size
            for micro in range(self.accumulate):
                start = (micro * self.world_size + self.rank) * local
                places = (divmod(first + i, self.repeats) for i in range(start, start + local))
                yield [(epoch, int(order[image]), repeat) for image, repeat in places]


def step_batches(
    dataset: Dataset[Any],
    *,
    num_items: int,
    batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    repeats: int = 1,
    pin_memory: bool = False,
) -> Batches:
    """Returns this rank's micro-batches from `start_step` on, `accumulate` of them per step.

    Args:
        dataset: called as `dataset[(epoch, index, repeat)]`; its randomness comes from `sample_rng`.
        num_items: images; each epoch is a new permutation, its incomplete last batch is left out.
        batch_size: global batch size.
        workers: data processes; 0 loads in this one.
        repeats: appearances of an image in an epoch, see `StepBatches`.
        pin_memory: for a GPU, which copies from such memory while the CPU goes on.

    Raises:
        ValueError: the batch does not divide, or is larger than the data set; or what `Batches` raises.
    """
    sampler = StepBatches(num_items, batch_size, seed, start_step, total_steps, rank, world_size, accumulate, repeats)
    return Batches(dataset, sampler, workers, collate_fn=collate_fn, pin_memory=pin_memory, prefetch=4)
