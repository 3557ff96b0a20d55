"""Data workers alone, and with the step that waits for them: from files, a cache, and with crops on the device."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from pretrain.data.cache import attach
from pretrain.data.cache_filling import filling
from pretrain.data.check import check_images
from pretrain.data.sources import ImageList, open_source
from pretrain.methods.build import build_views
from pretrain.recipes import Recipe
from pretrain.training.loop_config import Loop
from pretrain.training.options import RunOptions
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.run_files import ENCODER
from tools.benchmarks.steps import BareStep
from tools.pretraining.train import batches_of_recipe, fit_recipe


@dataclass(frozen=True)
class Source:
    """One way from images to batches.

    Attributes:
        is_cached: whether decoded images are read from a cache.
        values: of the recipe, which say how crops are made.
    """

    is_cached: bool
    values: dict[str, Any]


SOURCES = {
    "files": Source(False, {}),
    "files, reduced JPEGs": Source(False, {"reduced_jpeg": True}),
    "files, device crops": Source(False, {"crops": "device"}),
    "cache": Source(True, {}),
    "cache, device crops": Source(True, {"crops": "device"}),
}
"""By the name in the table; the first is what the others are compared with."""


def write_images(folder: Path, count: int) -> Path:
    """Writes JPEGs as large as COCO's, 640 x 480 pixels and some 150 KB; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)) + rng.normal(0, 12, (480, 640, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=92)
    return folder


def images_of(data: str | None, count: int, place: Path) -> tuple[ImageList, ImageList]:
    """Returns the first images of a source, or synthetic ones: as files, and decoded in a cache.

    Args:
        data: as `--data` of tools/pretrain.py, or None.
        count: images, at most.
        place: an empty folder.
    """
    images = open_source(data if data is not None else write_images(place / "images", count))
    images = images.subset(images.names[:count])
    with filling(images, str(place / "cache"), 0) as cached:
        bad = {image.name for image in check_images(cached)}
    good = [name for name in images.names if name not in bad]
    return images.subset(good), attach(images, str(place / "cache")).subset(good)


def make_batches(
    source: Source, recipe: Recipe, images: ImageList, fabric: Fabric, workers: int, steps: int
) -> Iterator[dict[str, Tensor]]:
    """Returns micro-batches of so many steps as a run has them; each must be asked for once."""
    recipe = replace(recipe, **source.values)
    views = build_views(recipe, images, recipe.encoder_sizes["patch_size"])
    return batches_of_recipe(recipe, views, _loop(recipe, steps), fabric, workers)(0)


def _loop(recipe: Recipe, steps: int) -> Loop:
    """Returns a loop of the recipe, which logs as often as one by default and saves at its end."""
    options = RunOptions(Path(), resume=False, workers=0, save_every=steps, log_every=50, max_bad_fraction=0.0)
    return Loop.of(recipe, options, steps, steps_per_epoch=steps, clip_per_parameter=recipe.clip_per_parameter)


def trained_per_second(
    step: BareStep, source: Source, images: ImageList, fabric: Fabric, workers: int, warm: int, steps: int
) -> float:
    """Returns the images/s of a run with the steps of a way: what tools/pretrain.py does, for some steps.

    Args:
        step: says how they are made; its method is trained on.
        source: of its images.
        images: of the source.
        fabric: device and precision.
        workers: data processes.
        warm: steps that are made first and not counted.
        steps: that are counted.
    """
    recipe = replace(step.recipe, **source.values)
    views = build_views(recipe, images, recipe.encoder_sizes["patch_size"])
    loop = _loop(recipe, warm + steps)
    wait = torch.cuda.synchronize if fabric.device.type == "cuda" else lambda: None
    times = []

    def mark(done: int) -> None:
        if done in (warm, warm + steps):
            wait()
            times.append(time.perf_counter())

    batches = batches_of_recipe(recipe, views, loop, fabric, workers)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark")))
        stack.enter_context(redirect_stdout(io.StringIO()))  # its lines would stand between the tables
        folder = stack.enter_context(RunFolder.open(place / "run", resume=False, artefact=ENCODER))
        fit_recipe(recipe, step.method, step.optimizer(), loop, batches, folder, fabric, after_step=[mark])
    return steps * recipe.batch_size / (times[1] - times[0])


def images_per_second(
    batches: Iterator[dict[str, Tensor]],
    use: Callable[[dict[str, Tensor]], object],
    warm: int,
    steps: int,
    fabric: Fabric,
) -> float:
    """Returns how many images are taken and used in a second, waiting for the device at both ends.

    Args:
        batches: at least `warm + steps`.
        use: called with each on the device.
        warm: batches that are made first and not counted, while workers start.
        steps: batches that are counted.
        fabric: knows the device.
    """
    wait = torch.cuda.synchronize if fabric.device.type == "cuda" else lambda: None
    start, count = 0.0, 0
    try:
        for number in range(warm + steps):
            if number == warm:
                wait()
                start = time.perf_counter()
            batch = fabric.to_device(next(batches))
            use(batch)
            count += len(batch["image"]) if number >= warm else 0
        wait()
        return count / (time.perf_counter() - start)
    finally:
        getattr(batches, "close", lambda: None)()
