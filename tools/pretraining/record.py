"""What config.json of a pre-training run holds, and the recipe that a start or a resume has by it."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain.methods.build import build_encoder
from pretrain.own_recipe import OWN, choose_precision
from pretrain.recipes import Recipe
from pretrain.training.compilation import pays
from pretrain.training.distributed import cpu_has_bf16, machine_record
from pretrain.training.run_folder import check_command
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of
from tools.pretraining.options import FREE, PretrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def recipe_of(name: str, named: Recipe, given: dict[str, Any], previous: dict[str, Any] | None) -> Recipe:
    """Returns the recipe with the options given; on a resume, omitted options keep the values of the run."""
    if previous is None:
        return named.override(given)
    check_command(previous, "pretrain")
    if previous.get("recipe") != name:
        raise UserError(
            f"--resume: the run in --output has --recipe {previous.get('recipe')} and not {name}: "
            "name the old recipe, or start anew in another --output"
        )
    return Recipe(**previous["values"]).override(given)


def with_precision(name: str, named: Recipe, device: str) -> Recipe:
    """Returns the recipe with the precision that `own` chooses for this machine's device; the others have theirs."""
    if name != OWN:
        return named
    on_gpu = device != "cpu" and torch.cuda.is_available()
    # On a CPU 1.6 to 2.5 times the images a second (ViT-Ti at 128 px: 28 and 70).
    # A card without such units (before Ampere) counts as able to emulate it, slowly.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16() is True
    return dataclasses.replace(named, precision=choose_precision(has_bf16)[0])


def config_of(
    name: str,
    recipe: Recipe,
    options: PretrainOptions,
    data: dict[str, Any],
    fabric: Fabric,
    init: Path | None,
    init_digest: str | None,
    planned: dict[str, Any],
    total_steps: int,
) -> dict[str, Any]:
    """Returns config.json of a run: what has to stay the same on a resume, and under "free" what may change.

    Args:
        name: of the recipe.
        recipe: all values.
        options: of the command line.
        data: of `readable_images`.
        fabric: device and processes.
        init: as of `build_encoder`.
        init_digest: of the file given with `--init`.
        planned: of `Plan.record`.
        total_steps: of the whole run.
    """
    return {
        "command": "pretrain",
        "recipe": name,
        "values": dataclasses.asdict(recipe),
        "encoder": build_encoder(recipe, init).config,
        "data": data,
        **({"rehearsal": True} if options.rehearse else {}),
        **({"--tokenizer-weights": sha256_of(options.tokenizer_weights)} if options.tokenizer_weights else {}),
        **({"--init": init_digest} if init_digest else {}),
        **({"--holdout": options.holdout} if options.holdout else {}),
        **({"--hours": options.hours} if options.hours is not None else {}),
        "free": {
            **{key: getattr(options, key) for key in FREE},
            "data": options.data[0] if len(options.data) == 1 else options.data,
            "plan": planned,
            **machine_record(fabric),
            "compiled": pays(recipe.compile, fabric.device, total_steps),
            "deterministic": options.deterministic,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        },
    }
