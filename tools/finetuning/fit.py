"""Fine-tuning by a recipe: optimizer, schedule and batches around the one training loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from pretrain.training.ema import WeightAverage
from pretrain.training.loader import step_batches
from pretrain.training.loop import Loop, fit
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.param_groups import param_groups

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def finetune(
    fabric: Fabric,
    model: Any,
    train_set: Dataset[Any],
    num_items: int,
    recipe: Any,
    folder: RunFolder,
    args: argparse.Namespace,
    *,
    title: str,
    total_steps: int,
    steps_per_epoch: int,
    average: WeightAverage | None = None,
    evaluate: Callable[[int], Any] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    repeats: int = 1,
) -> None:
    """Trains a model in place, from the folder's newest checkpoint or from the start, with AdamW and layer decay.

    Args:
        fabric: device, precision, processes.
        model: `model(batch)` returns named losses; has `metric_names`.
        train_set: of `num_items` images, called as `step_batches` describes.
        num_items: images.
        recipe: a `CheckedRecipe` with lr, layer_decay, weight_decay, beta2, clip_grad, accumulate, eval_every, seed.
        folder: of the run.
        args: has workers, save_every and log_every.
        title: in front of the progress bar.
        total_steps: updates of the whole run.
        steps_per_epoch: updates an epoch.
        average: takes in the weights after each update.
        evaluate: called every `recipe.eval_every` updates.
        collate_fn: of the loader.
        repeats: appearances of an image in an epoch.
    """
    groups = param_groups(model, recipe.lr, recipe.weight_decay, recipe.layer_decay)
    fit(
        fabric,
        model,
        torch.optim.AdamW(groups, betas=(0.9, recipe.beta2), fused=False),
        loop=Loop(
            total_steps=total_steps,
            batch_size=recipe.batch_size,
            steps_per_epoch=steps_per_epoch,
            clip_grad=recipe.clip_grad or None,
            accumulate=recipe.accumulate,
            save_every=args.save_every,
            log_every=args.log_every,
            eval_every=recipe.eval_every or None,
            seed=recipe.seed,
        ),
        lr_at=lambda step: recipe.lr_factor(step, total_steps),
        batches=lambda start: step_batches(
            train_set,
            num_items=num_items,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            start_step=start,
            total_steps=total_steps,
            workers=args.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            accumulate=recipe.accumulate,
            collate_fn=collate_fn,
            repeats=repeats,
        ),
        folder=folder,
        metric_names=model.metric_names,
        title=title,
        average=average,
        evaluate=evaluate,
    )
