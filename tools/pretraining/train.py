"""The training of a pre-training run: from readable images and a recipe to encoder.safetensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.data.sources import ImageList
from pretrain.data.views import Views
from pretrain.methods.build import build_method, build_optimizer, build_views
from pretrain.methods.qk_limit import QueryKeyLimit
from pretrain.recipes import Recipe
from pretrain.tokenizers.build import TOKENIZER_FILE
from pretrain.training.compilation import compile_blocks, pays, say_choice
from pretrain.training.loader import steps_per_epoch
from pretrain.training.loop import batches_of, fit
from pretrain.training.loop_config import Loop
from pretrain.training.run_folder import RunFolder
from pretrain.training.schedule import cosine, warmup_cosine
from splitmask_backbones import save_encoder
from splitmask_backbones.run_files import ENCODER, REHEARSAL_ENCODER
from tools import cli, monitoring
from tools.pretraining.model_card import write_model_card
from tools.pretraining.options import PretrainOptions
from tools.pretraining.start import lineage_of

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from pretrain.methods.base import Method
    from pretrain.training.rehearsal import Rehearsal
    from pretrain.training.step import GradCached

logger = logging.getLogger("tools.pretrain")

TO_FINE_TUNE = (
    "to fine-tune it with a config of another encoder add encoder=none (train_det) or model.backbone.encoder=none "
    "(train_seg)"
)


def train(
    recipe: Recipe,
    images: ImageList,
    folder: RunFolder,
    options: PretrainOptions,
    fabric: Fabric,
    rehearsal: Rehearsal | None,
    init: Path | None,
) -> None:
    """Trains from the folder's newest checkpoint, or the start, and writes the encoder, its card and the pictures.

    Args:
        recipe: all values.
        images: readable ones.
        folder: of the run, its config.json written.
        options: of the command line.
        fabric: device, precision, processes.
        rehearsal: in place of a result, where it is one.
        init: as of `build_encoder`.
    """
    images, make_monitor = monitoring.prepare(options, images, fabric, options.workers)
    total_steps, per_epoch = length_of(recipe, images, rehearsal)
    if not folder.resumed and folder.is_main:
        (folder.path / TOKENIZER_FILE).unlink(missing_ok=True)  # of a start that failed
    views = build_views(recipe, images, recipe.encoder_sizes["patch_size"])
    method = build_method(
        recipe,
        views,
        folder.path,
        options.workers,
        options.tokenizer_weights,
        init,
        total_steps=total_steps,
        steps_per_epoch=per_epoch,
    )
    cli.say(
        folder,
        f"{len(images)} images, {total_steps} steps of {recipe.batch_size} ({total_steps / per_epoch:.1f} epochs), "
        f"peak lr {recipe.peak_lr:.3g}, {recipe.encoder_title}, {fabric.device}",
    )
    compiled = pays(recipe.compile, fabric.device, total_steps)
    if folder.is_main:
        say_choice(recipe.compile, compiled)
    if compiled:
        compile_blocks(method)
    if grad_cached(recipe, method) is not None:
        parts = f"{recipe.accumulate} micro-batches a step"
        cli.say(folder, f"{parts}, matched among all of them: one forward pass more for each")
    optimizer = build_optimizer(method, recipe, fabric.device)
    loop = Loop.of(
        recipe,
        options,
        total_steps,
        per_epoch,
        clip_per_parameter=recipe.clip_per_parameter,
        monitor_every=options.monitor_every,
    )
    if rehearsal:
        rehearsal.begin_training()
    fit_recipe(
        recipe,
        method,
        optimizer,
        loop,
        batches_of_recipe(recipe, views, loop, fabric, options.workers),
        folder,
        fabric,
        after_step=[rehearsal.after_step] if rehearsal else [],
        monitor=make_monitor and make_monitor(method, recipe),
    )
    if rehearsal:
        if fabric.is_global_zero:
            rehearsal.end_training(folder.path)
            save_encoder(method.encoder, folder.path / REHEARSAL_ENCODER, lineage=lineage_of(init))
            entry = rehearsal.record("pretrain", loop, fabric, recipe.precision, num_evaluations=0)
            rehearsal.write(folder, entry)
    elif fabric.is_global_zero:
        # The card first: a run whose encoder is there is finished, and a resume leaves it alone.
        lineage = lineage_of(init)
        write_model_card(folder.path, lineage)
        save_encoder(method.encoder, folder.path / ENCODER, lineage=lineage)
        print(f"wrote {folder.path / ENCODER}")
        print(TO_FINE_TUNE)
        monitoring.draw(folder.path)
        for advice in monitoring.advise(folder.path, recipe.branch_jitter, recipe.match_weight, recipe.qk_limit):
            logger.warning(advice)


def length_of(recipe: Recipe, images: ImageList, rehearsal: Rehearsal | None) -> tuple[int, int]:
    """Returns the steps of the whole run, and of an epoch of the images to train on."""
    per_epoch = steps_per_epoch(rehearsal.num_images["train"] if rehearsal else len(images), recipe.batch_size)
    return recipe.total_steps(per_epoch), per_epoch


def grad_cached(recipe: Recipe, method: Method) -> GradCached | None:
    """Returns the method where its steps cache gradients, as `train_step` takes it."""
    return method if recipe.accumulate > 1 and recipe.grad_cache and method.compares_images else None


def after_each_step(recipe: Recipe, method: Method) -> list[Callable[[int], None]]:
    """Returns what a step of the recipe ends with, in order; each is called with the number of finished steps."""
    if recipe.qk_limit is None:
        return [method.after_step]
    return [QueryKeyLimit(method.trained_encoder, recipe.qk_limit).after_step, method.after_step]


def fit_recipe(
    recipe: Recipe,
    method: Method,
    optimizer: torch.optim.Optimizer,
    loop: Loop,
    batches: Callable[[int], Iterator[Any]],
    folder: RunFolder,
    fabric: Fabric,
    *,
    after_step: Sequence[Callable[[int], None]] = (),
    monitor: Callable[[], dict[str, float | None]] | None = None,
) -> None:
    """Trains a method as its recipe says, with `fit`.

    Args:
        recipe: all values.
        method: is trained in place.
        optimizer: of its parameters.
        loop: length and intervals.
        batches: as of `fit`.
        folder: of the run.
        fabric: device, precision, processes.
        after_step: called after each step, beside what the recipe does then.
        monitor: as of `fit`.
    """
    total_steps, end = loop.total_steps, recipe.end_weight_decay
    warmup_steps = round(recipe.warmup_fraction * total_steps)
    fit(
        fabric,
        method,
        optimizer,
        loop=loop,
        lr_at=lambda step: warmup_cosine(step, total_steps, warmup_steps, recipe.end_lr_factor),
        batches=batches,
        folder=folder,
        metric_names=method.metric_names,
        title="pre-train",
        after_step=[*after_each_step(recipe, method), *after_step],
        weight_decay_at=None if end is None else lambda step: cosine(step, total_steps, recipe.weight_decay, end),
        monitor=monitor,
        grad_cache=grad_cached(recipe, method),
        static=recipe.cuda_graph,
    )


def batches_of_recipe(
    recipe: Recipe, views: Views, loop: Loop, fabric: Fabric, workers: int
) -> Callable[[int], Iterator[Any]]:
    """Returns what gives the micro-batches from a step on, their crops made where the recipe says."""
    if recipe.crops == "cpu":
        return batches_of(views, loop, fabric, workers)
    from pretrain.data.device_views import BoxViews, DeviceBatches, collate, resident_pixels

    resident = resident_pixels(views, fabric.device)
    where = "sent by the data processes" if resident is None else f"of {resident.numel() / 1e9:.1f} GB of cached images"
    if fabric.is_global_zero:
        logger.info("crops are made on %s, %s", fabric.device, where)
    boxes = batches_of(BoxViews(views, resident is not None), loop, fabric, workers, collate)
    return lambda start: DeviceBatches(boxes(start), fabric, recipe.img_size, resident)
