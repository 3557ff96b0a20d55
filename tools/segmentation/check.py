"""Reads every image and label of a split once before the first step, and counts what is there."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.check import BadImage, enforce_bad_limit
from pretrain.data.decode import UnreadableImage
from pretrain.data.remarks import remarks
from pretrain.data.sources import lost, printable
from pretrain.training.cores import usable_cores
from pretrain.training.progress import tracked
from splitmask_backbones.errors import UserError
from tools.segmentation.classes import Classes
from tools.segmentation.labels import IGNORE, check_values, read_numbers, to_indices, to_training_labels
from tools.segmentation.layout import Split
from tools.segmentation.values import check_found_values, doubts, ignored_values

logger = logging.getLogger(__name__)


def check_splits(
    splits: dict[str, Split], classes: Classes, max_bad_fraction: float, report: Path, is_resumed: bool = False
) -> tuple[dict[str, Split], dict[str, dict[str, Any]]]:
    """Returns the usable pairs and the counts for data_report.json, both by the splits' names.

    Args:
        splits: of `find_split`, by "train" and "val".
        max_bad_fraction: share of all images that may be unreadable; their pairs are left out.
        is_resumed: whether all of these images could be read when the run started.

    Raises:
        ValueError: an image that the run could read and that is unreadable now; a size that differs, a colour label, a
            value outside the classes, too many unreadable images, a split of which nothing is left, or labels that
            cannot teach the classes (`values`).
    """
    for note in dict.fromkeys(note for split in splits.values() for note in split.notes):
        logger.warning("%s", note)
    for split in splits.values():
        for remark in remarks(split.image_list()):
            logger.info("%s", printable(remark))
    found = {name: _check_split(split, name, classes) for name, split in splits.items()}
    bad = [image for _, images, _ in found.values() for image in images]
    if bad and is_resumed:
        raise lost(bad[0].name, bad[0].reason)
    enforce_bad_limit(sum(len(split.pairs) for split in splits.values()), bad, max_bad_fraction, report)
    for name, (split, _, counts) in found.items():
        numbers = counts.pop("numbers")
        check_found_values(name, split.label_dir, numbers, classes, split.label_ids)
        counts["ignored_values"] = ignored_values(numbers, classes, split.label_ids)
        for line in doubts(name, numbers, classes, split.label_ids):
            logger.warning("%s", line)
    return {name: split for name, (split, _, _) in found.items()}, {
        name: counts for name, (_, _, counts) in found.items()
    }


def without(splits: Mapping[str, Split], unusable: Mapping[str, Sequence[str]]) -> dict[str, Split]:
    """Returns the splits less the pairs of the images that a run left out, by split: readable or not by now."""
    return {
        name: dataclasses.replace(split, pairs=[pair for pair in split.pairs if pair[0] not in unusable[name]])
        for name, split in splits.items()
    }


def count_classes(split: Split, classes: Classes) -> dict[str, Any]:
    """Returns the counts of a split of which every pair is good, as those of `check_splits`.

    Raises:
        ValueError: as of `check_splits`; or an image that cannot be read.
    """
    _, bad, counts = _check_split(split, "train", classes)
    if bad:
        raise UserError(f"{bad[0].name} cannot be read ({bad[0].reason}): repair or remove it and its label")
    return counts


def _check_split(split: Split, name: str, classes: Classes) -> tuple[Split, list[BadImage], dict[str, Any]]:
    num_classes, images = len(classes.names), split.image_list()

    def look(index: int) -> BadImage | tuple[np.ndarray, Counter[int]]:
        pair = split.pairs[index]
        label_path = split.label_dir / pair[1]
        numbers = read_numbers(label_path)
        values = to_indices(numbers, split.label_ids)
        check_values(label_path, values, num_classes, classes.reduce_zero_label)
        try:
            width, height = images.decode(index).size
        except UnreadableImage as error:
            return BadImage(str(split.image_dir / pair[0]), str(error))
        if (height, width) != values.shape:
            raise UserError(
                f"{split.image_dir / pair[0]} is {width} x {height} pixels, but its label {label_path} is "
                f"{values.shape[1]} x {values.shape[0]}: make them the same size"
            )
        labels = to_training_labels(values, classes.reduce_zero_label)
        return np.bincount(labels.ravel(), minlength=IGNORE + 1), _count(numbers)

    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    images_with = np.zeros(IGNORE + 1, dtype=np.int64)
    pixels_with = np.zeros(IGNORE + 1, dtype=np.int64)
    numbers: Counter[int] = Counter()
    bad: list[BadImage] = []
    kept: list[tuple[str, str]] = []
    # Threads: pillow decodes without holding the interpreter.
    with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        try:
            looked = tracked(pool.map(look, range(len(split.pairs))), len(split.pairs), f"checking {name}")
            for pair, found in zip(split.pairs, looked, strict=True):
                if isinstance(found, BadImage):
                    bad.append(found)
                    continue
                kept.append(pair)
                of_labels, of_numbers = found
                numbers += of_numbers
                pixels += of_labels
                images_with += of_labels > 0
                pixels_with += (of_labels > 0) * of_labels[:num_classes].sum()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    counts = {
        "images": len(kept),
        "unreadable_images": len(bad),
        "ignored_pixels": int(pixels[IGNORE]),
        "numbers": numbers,
        "classes": {
            title: {
                "images": int(images_with[i]),
                "pixels": int(pixels[i]),
                "labelled_pixels_of_images": int(pixels_with[i]),
            }
            for i, title in enumerate(classes.names)
        },
    }
    return dataclasses.replace(split, pairs=kept), bad, counts


def _count(numbers: np.ndarray) -> Counter[int]:
    """Returns the pixels of each number; `np.unique` would sort them."""
    if numbers.size and (numbers.min() < 0 or numbers.max() > 2**16):
        found, counts = np.unique(numbers, return_counts=True)
    else:
        every = np.bincount(numbers.ravel())
        found = np.flatnonzero(every)
        counts = every[found]
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))
