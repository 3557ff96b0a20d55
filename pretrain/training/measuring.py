"""What a step takes on this machine, in seconds and bytes: measured for plans and for rehearsals alike."""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.training.static_step import StaticStep
from pretrain.training.step import GradCached, train_step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEPS = 3
"""Optimizer steps that are timed: the first one warms up and is not counted."""


def now() -> float:
    """Returns the seconds of a clock, after the GPU has finished what it was told."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.monotonic()


def median_step(steps: Sequence[float]) -> float:
    """Returns the seconds of a step: the median without the first, which warms up; 0 without steps."""
    return statistics.median(steps[1:] or steps or [0.0])


def peak_memory() -> int:
    """Returns the bytes that this process needed at most: of the GPU's memory where it used one, else of the host's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, each once, without the model's own tensors."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor  # kept, so that no other storage comes to lie at its place

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return total


def memory_of_step(
    model: nn.Module, forward: Callable[[int], Any], processes: int = 1, num_images: int = 2
) -> tuple[float, float]:
    """Returns the bytes that a step needs whatever its batch, and those for each image.

    Weights, gradients, two moments of AdamW, and with several processes the gradients that are sent. Told from two
    forward passes, so that a batch that does not fit need not be tried.

    Args:
        model: float32, on its device.
        forward: of a batch of so many images.
        processes: of the run.
        num_images: of the smaller pass; the larger one has twice as many.
    """
    small, large = (saved_bytes(model, partial(forward, count)) for count in (num_images, 2 * num_images))
    per_image = (large - small) / num_images
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    own = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return own + trained * (3 if processes == 1 else 4) + max(0.0, small - num_images * per_image), per_image


def time_steps(
    fabric: Fabric,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    grad_cache: GradCached | None = None,
    static: bool = False,
) -> float:
    """Returns the seconds of a step with one micro-batch on the device; moves the method's weights.

    Args:
        fabric: device, precision, processes.
        method: as of `fit`.
        optimizer: of its parameters.
        batch: used for every step.
        grad_cache: as of `train_step`.
        static: as of `fit`.
    """
    model, wrapped = fabric.setup(method, optimizer)
    method.train()
    batches = itertools.repeat(fabric.to_device(batch))
    make_step: Callable[..., Any] = partial(train_step, fabric, model, wrapped, clip_grad=3.0, grad_cache=grad_cache)  # type: ignore[arg-type]
    if static:
        make_step = StaticStep(fabric, model, optimizer, clip_grad=3.0)
    laps = [now()]
    for _ in range(STEPS):
        make_step(batches)
        laps.append(now())
    return median_step([after - before for before, after in itertools.pairwise(laps)])
