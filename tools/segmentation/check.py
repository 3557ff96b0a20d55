"""Reads every image and label of a split once before the first step, and counts what is there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.images import BadImage, UnreadableImage, enforce_bad_limit, read_image
from splitmask_backbones.errors import UserError
from tools.segmentation.classes import Classes
from tools.segmentation.labels import IGNORE, check_values, read_label, to_training_labels
from tools.segmentation.pairs import Split


def check_split(
    split: Split, name: str, classes: Classes, max_bad_fraction: float, report: Path
) -> tuple[Split, dict[str, Any]]:
    """Returns the usable pairs and the counts for data_report.json.

    Args:
        split: of `find_split`.
        name: "train" or "val".
        classes: what the labels may hold.
        max_bad_fraction: share of images that may be unreadable; their pairs are left out.
        report: file for the unreadable ones.

    Raises:
        ValueError: a size that differs, a colour label, a value outside the classes, or too many unreadable images.
    """
    num_classes = len(classes.names)

    def look(pair: tuple[str, str]) -> BadImage | np.ndarray:
        label_path = split.label_dir / pair[1]
        values = read_label(label_path)
        check_values(label_path, values, num_classes, classes.reduce_zero_label)
        try:
            width, height = read_image(split.image_dir / pair[0]).size
        except UnreadableImage as error:
            return BadImage(pair[0], str(error))
        if (height, width) != values.shape:
            raise UserError(
                f"{split.image_dir / pair[0]} is {width} x {height} pixels, but its label {label_path} is "
                f"{values.shape[1]} x {values.shape[0]}: make them the same size"
            )
        labels = to_training_labels(values, classes.reduce_zero_label)
        return np.bincount(labels.ravel(), minlength=IGNORE + 1)

    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    images_with = np.zeros(IGNORE + 1, dtype=np.int64)
    bad: list[BadImage] = []
    kept: list[tuple[str, str]] = []
    # Threads: pillow decodes without holding the interpreter.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            for pair, found in zip(
                split.pairs, _with_progress(pool.map(look, split.pairs), len(split.pairs), name), strict=True
            ):
                if isinstance(found, BadImage):
                    bad.append(found)
                    continue
                kept.append(pair)
                pixels += found
                images_with += found > 0
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    enforce_bad_limit(len(split.pairs), bad, max_bad_fraction, report, root=split.image_dir)
    if pixels[:num_classes].sum() == 0:
        raise UserError(
            f"{split.label_dir}: every pixel of the {len(kept)} labels is ignored: there is nothing to learn from"
        )
    counts = {
        "images": len(kept),
        "unreadable_images": len(bad),
        "ignored_pixels": int(pixels[IGNORE]),
        "classes": {
            title: {"images": int(images_with[i]), "pixels": int(pixels[i])} for i, title in enumerate(classes.names)
        },
    }
    return Split(split.image_dir, split.label_dir, kept), counts


def _with_progress(items: Iterator[Any], total: int, name: str) -> Iterator[Any]:
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            left = (now - started) / done * (total - done)
            print(f"checking {name}: {done}/{total}  {left:.0f} s left", flush=True)
