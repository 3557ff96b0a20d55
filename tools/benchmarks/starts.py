"""How long a run on many images takes before its first step: when it has never seen them, and when it has."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from PIL import Image

from pretrain.data.sources import open_source
from pretrain.training.options import OFF
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.run_files import ENCODER
from tools.pretraining.images import readable_images

COCO = 118_287
"""Images of COCO train2017, to which the times are extrapolated."""


def write_tiny(folder: Path, count: int) -> Path:
    """Writes so many JPEGs of 32 pixels in folders of 1,000; returns the folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "first.jpg")
    for number in range(1, count):
        place = folder / f"{number // 1000:04d}"
        place.mkdir(exist_ok=True)
        shutil.copyfile(folder / "first.jpg", place / f"{number:07d}.jpg")
    return folder


def start_seconds(count: int, place: Path, workers: int, fabric: Fabric) -> dict[str, float]:
    """Returns the seconds from `--data` to a list of images that can be read, by the kind of start.

    Args:
        count: tiny images; to decode larger ones takes longer, and is part of a first start alone.
        place: an empty folder.
        workers: data processes.
        fabric: of the run.
    """
    data = write_tiny(place / "many", count)
    seconds = {}
    for name, cache in (("without a cache", OFF), ("with a cache", str(place / "pixels"))):
        output = place / f"run {cache == OFF}"
        known: dict[str, Any] = {}
        for kind in ("first start", "resume", "another run"):
            start = time.perf_counter()
            nothing = contextlib.redirect_stdout(io.StringIO())
            with nothing, RunFolder.open(output / kind.split()[0], resume=False, artefact=ENCODER) as folder:
                if kind == "resume":
                    folder.previous = {"data": known}
                source = open_source(str(data))
                _, known = readable_images(source, folder, fabric, workers, 0.0, cache)
            seconds[f"{kind}, {name}"] = time.perf_counter() - start
    return seconds
