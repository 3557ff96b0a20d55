"""Data workers alone, and with the step that waits for them: from files, a cache, and with crops on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from pretrain.data.device_views import BoxViews, DeviceBatches, collate, resident_pixels
from pretrain.data.sources import ImageList, open_source
from pretrain.methods.build import build_views
from pretrain.recipes import Recipe
from pretrain.training.loader import step_batches


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
    """Returns batches as `tools/pretrain.py` has them; each must be asked for once."""
    recipe = replace(recipe, **source.values)
    views = build_views(recipe, images, recipe.encoder_sizes["patch_size"])
    options: dict[str, Any] = {
        "num_items": len(views), "batch_size": recipe.batch_size, "seed": 0, "start_step": 0, "total_steps": steps,
        "workers": workers, "pin_memory": fabric.device.type == "cuda",
    }  # fmt: skip
    if recipe.crops == "cpu":
        return step_batches(views, **options)
    resident = resident_pixels(views, fabric.device)
    boxes = step_batches(BoxViews(views, resident is not None), collate_fn=collate, **options)
    return DeviceBatches(boxes, fabric, recipe.img_size, resident)


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
