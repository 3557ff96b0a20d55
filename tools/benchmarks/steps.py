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
from pretrain.methods.build import build_encoder
from pretrain.methods.splitmask import SplitMask
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training.loader import sample_rng
from pretrain.training.step import train_step
from splitmask_backbones.param_groups import param_groups

Batch = dict[str, Tensor]
Step = Callable[[Batch], object]


@dataclass(frozen=True)
class Way:
    """One way to make a step.

    Attributes:
        make: returns the step of a method and recipe; what it raises is shown in the table.
        missing: says why a device cannot do it, None where it can.
    """

    make: Callable[[SplitMask, Recipe, Fabric], Step]
    missing: Callable[[torch.device], str | None] = lambda device: None


def _eager(method: SplitMask, recipe: Recipe, fabric: Fabric, fused: bool = False) -> Step:
    groups = param_groups(method, recipe.peak_lr, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, recipe.beta2), fused=fused)
    model, wrapped = fabric.setup(method, optimizer)
    model.train()
    cached = method if recipe.accumulate > 1 and recipe.grad_cache and method.couples else None
    options: dict[str, Any] = {"clip_grad": recipe.clip_grad, "accumulate": recipe.accumulate, "cached": cached}

    def step(batch: Batch) -> object:
        parts = [dict(zip(batch, part, strict=True)) for part in _parts(batch, recipe.accumulate)]
        return train_step(fabric, model, wrapped, iter(parts), **options)  # type: ignore[arg-type]

    return step


def _parts(batch: Batch, count: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(value.chunk(count) for value in batch.values()), strict=True))


def _fused(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    return _eager(method, recipe, fabric, fused=True)


def _accumulated(method: SplitMask, recipe: Recipe, fabric: Fabric) -> Step:
    return _eager(method, recipe.override({"accumulate": 2}), fabric)


WAYS = {"as it is": Way(_eager), "fused AdamW": Way(_fused), "two micro-batches": Way(_accumulated)}
"""By the name in the table; the first is what the others are compared with."""


def build_method(recipe: Recipe) -> SplitMask:
    """Returns the recipe's SplitMask with a random codebook: what is measured needs no data."""
    encoder = build_encoder(recipe)
    codebook = random_projection(recipe.vocab_size, 3 * encoder.patch_size**2, 0)
    return SplitMask(encoder, Tokenizer(codebook, recipe.patch_norm), recipe.decoder_depth)


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
        reason = way.missing(fabric.device)
        if way.make is _accumulated and (recipe.accumulate > 1 or recipe.batch_size % 2):
            reason = "the recipe accumulates by itself, or has an odd batch"
        if reason is None:
            try:
                steps[name] = way.make(copy.deepcopy(method), recipe, fabric)
            except Exception as error:  # what a version of torch cannot do is a row of the table
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            reasons[name] = reason
    return steps, reasons
