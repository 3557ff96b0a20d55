"""The ways in which a pre-training step can be made here, each with a batch on the device and nothing to wait for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from pretrain.data.masking import split_halves
from pretrain.methods.splitmask import SplitMask
from pretrain.recipes import Recipe
from pretrain.training.compilation import compile_blocks, has_failed
from pretrain.training.loader import sample_rng
from pretrain.training.optimizer import adamw
from pretrain.training.static_step import StaticStep
from pretrain.training.step import train_step
from splitmask_backbones.param_groups import param_groups

Batch = dict[str, Tensor]
Step = Callable[[Batch], Any]


@dataclass(frozen=True)
class Way:
    """One way to make a step.

    Attributes:
        make: returns the step of a method and recipe; what it raises is shown in the table.
        missing: says why a recipe or device cannot do it, None where it can.
    """

    make: Callable[[SplitMask, Recipe, Fabric], Step]
    missing: Callable[[Recipe, torch.device], str | None] = lambda recipe, device: None


def _eager(method: SplitMask, recipe: Recipe, fabric: Fabric, fused: bool | None = None) -> Step:
    optimizer = adamw(_groups(method, recipe), fabric.device, beta2=recipe.beta2)
    if fused is not None:
        for group in optimizer.param_groups:
            group["fused"] = fused
    model, wrapped = fabric.setup(method, optimizer)
    model.train()
    cached = method if recipe.accumulate > 1 and recipe.grad_cache and method.couples else None
    options: dict[str, Any] = {"clip_grad": recipe.clip_grad, "accumulate": recipe.accumulate, "cached": cached}

    def step(batch: Batch) -> dict[str, Tensor]:
        parts = zip(*(value.chunk(recipe.accumulate) for value in batch.values()), strict=True)
        micro_batches = (dict(zip(batch, part, strict=True)) for part in parts)
        return train_step(fabric, model, wrapped, micro_batches, **options)  # type: ignore[arg-type]

    return step


def _groups(method: SplitMask, recipe: Recipe) -> list[dict[str, Any]]:
    return param_groups(method, recipe.peak_lr, recipe.weight_decay)


def _fused(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    return _eager(method, recipe, fabric, fused=True)


def _accumulated(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    return _eager(method, recipe.override({"accumulate": 2}), fabric)


def _compiled(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    compile_blocks(method)
    return _unless_failed(method, _eager(method, recipe, fabric))


def _graph(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    optimizer = adamw(_groups(method, recipe), fabric.device, beta2=recipe.beta2, in_graph=True)
    model, _ = fabric.setup(method, optimizer)
    model.train()
    static = StaticStep(fabric, model, optimizer, clip_grad=recipe.clip_grad)

    def step(batch: Batch) -> dict[str, Tensor]:
        found = static(iter([batch]))
        if static.failed:
            raise RuntimeError("the step cannot be recorded")
        return found

    return step


def _compiled_graph(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    compile_blocks(method)
    return _unless_failed(method, _graph(method, recipe, fabric))


def _unless_failed(method: SplitMask, step: Step) -> Step:
    def checked(batch: Batch) -> Any:
        found = step(batch)
        if has_failed(method):
            raise RuntimeError("the blocks cannot be compiled")
        return found

    return checked


def _no_graph(recipe: Recipe, device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"CUDA graphs need a GPU, and this is {device.type}"
    return "a graph holds one micro-batch" if recipe.accumulate > 1 else None


def _no_halves(recipe: Recipe, device: torch.device) -> str | None:
    return "the recipe accumulates, or has an odd batch" if recipe.accumulate > 1 or recipe.batch_size % 2 else None


WAYS = {
    "eager": Way(_eager),
    "eager, AdamW fused": Way(_fused, lambda recipe, device: "eager is" if device.type == "cuda" else None),
    "blocks compiled": Way(_compiled),
    "CUDA graph": Way(_graph, _no_graph),
    "compiled, CUDA graph": Way(_compiled_graph, _no_graph),
    "two micro-batches": Way(_accumulated, _no_halves),
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


def make_steps(method: SplitMask, recipe: Recipe, fabric: Fabric) -> tuple[dict[str, Step], dict[str, str]]:
    """Returns the steps by name, each of a copy of the method, and why the others cannot be made."""
    steps, reasons = {}, {}
    for name, way in WAYS.items():
        reason = way.missing(recipe, fabric.device)
        if reason is None:
            try:
                steps[name] = way.make(copy.deepcopy(method), recipe, fabric)
            except Exception as error:  # what a version of torch cannot do is a row of the table
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            reasons[name] = reason
    return steps, reasons
