"""The ways in which a pre-training step can be made here, each with a batch on the device and nothing to wait for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pretrain.data.masking import split_halves
from pretrain.methods.build import build_optimizer
from pretrain.methods.splitmask import SplitMask
from pretrain.recipes import Recipe
from pretrain.training.compilation import compile_blocks, has_failed
from pretrain.training.loader import sample_rng
from pretrain.training.options import OFF, ON
from pretrain.training.static_step import StaticStep
from pretrain.training.step import train_step
from tools.pretraining.train import after_each_step, grad_cached

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """One way to make a step.

    Attributes:
        values: of the recipe, those that differ.
        fused: whether AdamW is one kernel; None for what the device has by default.
        missing: says why a recipe or device cannot do it, None where it can.
    """

    values: dict[str, Any] = field(default_factory=dict)
    fused: bool | None = None
    missing: Callable[[Recipe, torch.device], str | None] = lambda recipe, device: None


class BareStep:
    """A step with a batch that lies on the device: nothing is waited for, and nobody looks at the loss.

    Args:
        way: how it is made.
        method: is trained, and belongs to the step from now on.
        recipe: whose steps the way changes.
        fabric: device and precision.

    Attributes:
        recipe: that of the way, with which `fit_recipe` makes the same step.
    """

    def __init__(self, way: Way, method: SplitMask, recipe: Recipe, fabric: Fabric) -> None:
        self.way, self.method, self.fabric = way, method, fabric
        self.recipe = replace(recipe, **way.values)
        if self.recipe.compile == ON:
            compile_blocks(method)
        optimizer = self.optimizer()
        model, wrapped = fabric.setup(method, optimizer)
        model.train()
        clip: Any = {"clip_grad": recipe.clip_grad, "clip_per_parameter": recipe.clip_per_parameter}
        self._make: Callable[..., Any]
        if self.recipe.cuda_graph:
            self._make = StaticStep(fabric, model, optimizer, **clip)
        else:
            more: Any = {"accumulate": self.recipe.accumulate, "grad_cache": grad_cached(self.recipe, method), **clip}
            ordinary: Callable[..., Any] = train_step
            self._make = partial(ordinary, fabric, model, wrapped, **more)
        self._after = after_each_step(self.recipe, method)
        self._done = 0

    def optimizer(self) -> torch.optim.AdamW:
        """Returns a new optimizer of the method."""
        made = build_optimizer(self.method, self.recipe, self.fabric.device)
        if self.way.fused is not None:
            for group in made.param_groups:
                group["fused"] = self.way.fused
        return made

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Makes a step; returns its values.

        Raises:
            RuntimeError: it was made in another way, which would be measured under a wrong name.
        """
        parts = zip(*(value.chunk(self.recipe.accumulate) for value in batch.values()), strict=True)
        found = self._make(dict(zip(batch, part, strict=True)) for part in parts)
        self._done += 1
        for call in self._after:
            call(self._done)
        if has_failed(self.method):
            raise RuntimeError("the blocks cannot be compiled")
        if getattr(self._make, "failed", False):
            raise RuntimeError("the step cannot be recorded")
        return found

    def release(self) -> None:
        """Gives back what the step holds beside the method: the optimizer's state, a graph's memory."""
        del self._make


def _no_graph(recipe: Recipe, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, and this is {device.type}"
    return "a graph holds one micro-batch" if recipe.accumulate > 1 else None


def _no_halves(recipe: Recipe, device: torch.device) -> str | None:
    return "the recipe accumulates, or has an odd batch" if recipe.accumulate > 1 or recipe.batch_size % 2 else None


WAYS = {
    "eager": Way(),
    "eager, AdamW fused": Way(fused=True, missing=lambda recipe, device: "eager is" if device.type == "cuda" else None),
    "blocks compiled": Way({"compile": ON}),
    "CUDA graph": Way({"cuda_graph": True}, missing=_no_graph),
    "compiled, CUDA graph": Way({"compile": ON, "cuda_graph": True}, missing=_no_graph),
    "two micro-batches": Way({"accumulate": 2}, missing=_no_halves),
}
"""By the name in the table; the first is what the others are compared with."""


def random_batch(recipe: Recipe, grid_size: tuple[int, int]) -> Batch:
    """Returns a batch of noise with the recipe's masks."""
    rngs = (sample_rng(0, 0, index) for index in range(recipe.batch_size))
    halves = [split_halves(recipe.mask, grid_size, rng, recipe.mask_ratio) for rng in rngs]
    return {
        "image": torch.randint(256, (recipe.batch_size, 3, recipe.img_size, recipe.img_size), dtype=torch.uint8),
        "ids_a": torch.stack([torch.from_numpy(a) for a, _ in halves]),
        "ids_b": torch.stack([torch.from_numpy(b) for _, b in halves]),
    }


def make_steps(method: SplitMask, recipe: Recipe, fabric: Fabric) -> tuple[dict[str, BareStep], dict[str, str]]:
    """Returns the steps by name, each of a copy of the method, and why the others cannot be made."""
    # What the recipe itself says of compiling and graphs is one of the ways.
    recipe = replace(recipe, compile=OFF, cuda_graph=False)
    steps, reasons = {}, {}
    for name, way in WAYS.items():
        reason = way.missing(recipe, fabric.device)
        if reason is None:
            try:
                steps[name] = BareStep(way, copy.deepcopy(method), recipe, fabric)
            except Exception as error:  # what a version of torch cannot do is a row of the table
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            reasons[name] = reason
    return steps, reasons
