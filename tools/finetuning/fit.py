"""Fine-tuning by a recipe: schedule and batches around the one training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

from pretrain.training.loader import step_batches
from pretrain.training.loop import Loop, fit
from pretrain.training.options import RunOptions
from pretrain.training.run_folder import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def finetune(
    fabric: Fabric,
    model: Any,
    optimizer: torch.optim.Optimizer,
    train_set: Any,
    recipe: Any,
    folder: RunFolder,
    options: RunOptions,
    *,
    title: str,
    total_steps: int,
    steps_per_epoch: int,
    average: AveragedModel | None = None,
    evaluate: Callable[[int], Any] | None = None,
    is_evaluated: Callable[[int], bool] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Trains a model in place, from the folder's newest checkpoint or from the start.

    Args:
        fabric: device, precision, processes.
        model: `model(batch)` returns named losses; has `metric_names`.
        optimizer: its groups' lr are the peak values.
        train_set: called as `step_batches` describes.
        recipe: has batch_size, accumulate, clip_grad, eval_every, seed, `lr_factor(step, total_steps)`, and `repeats`
            where an epoch shows images more than once.
        folder: of the run.
        options: workers and intervals.
        title: in front of the progress bar.
        total_steps: of the whole run.
        steps_per_epoch: steps per epoch.
        average: takes in the weights after each step.
        evaluate: called every `recipe.eval_every` steps.
        is_evaluated: whether that was done after so many steps.
        collate_fn: of the loader.
    """
    fit(
        fabric,
        model,
        optimizer,
        loop=Loop(
            total_steps=total_steps,
            batch_size=recipe.batch_size,
            steps_per_epoch=steps_per_epoch,
            clip_grad=recipe.clip_grad or None,
            accumulate=recipe.accumulate,
            save_every=options.save_every,
            log_every=options.log_every,
            eval_every=recipe.eval_every or None,
            seed=recipe.seed,
        ),
        lr_at=lambda step: recipe.lr_factor(step, total_steps),
        batches=lambda start: step_batches(
            train_set,
            num_items=len(train_set),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            start_step=start,
            total_steps=total_steps,
            workers=options.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            accumulate=recipe.accumulate,
            collate_fn=collate_fn,
            repeats=getattr(recipe, "repeats", 1),
        ),
        folder=folder,
        metric_names=model.metric_names,
        title=title,
        average=average,
        evaluate=evaluate,
        is_evaluated=is_evaluated,
    )
