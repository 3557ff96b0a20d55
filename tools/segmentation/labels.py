"""One label file to an array of class indices, the same way for the check, training and evaluation."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from splitmask_backbones.errors import UserError, first_few

IGNORE = 255

INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes with one number a pixel; P holds palette indices, which are the labels."""


def read_label(path: str | os.PathLike[str], label_ids: Sequence[int] = ()) -> np.ndarray:
    """Returns the labels of a file, int64 `(H, W)`: `read_numbers`, then `to_indices`."""
    return to_indices(read_numbers(path), label_ids)


def read_numbers(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the numbers in a file, int64 `(H, W)`: palette files as indices, bilevel ones as 0 and 1.

    Raises:
        ValueError: unreadable, or a colour image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"label file {path} cannot be read ({error}): repair it or remove the pair") from None
    if mode == "F":
        raise UserError(
            f"label file {path} holds floating-point numbers (mode F): labels hold one class index a pixel; save it "
            "with whole numbers"
        )
    if mode not in INDEX_MODES:
        raise UserError(
            f"label file {path} is a colour image (mode {mode}): "
            "labels hold one class index a pixel, as a grey or palette PNG; convert the colours to indices"
        )
    return values.astype(np.int64)


def to_indices(values: np.ndarray, label_ids: Sequence[int]) -> np.ndarray:
    """Returns class indices, int64 `(H, W)`, of the numbers in a file.

    Args:
        label_ids: the number of each class in the file, where that is not its index; all others become 255 (ignore).
    """
    if not label_ids:
        return values
    # A table over the numbers of the classes alone: files may hold any number, 2 ** 31 - 1 for "no data".
    table = np.full(max(label_ids) + 2, IGNORE, dtype=np.int64)
    table[list(label_ids)] = np.arange(len(label_ids))
    return table[np.where((values < 0) | (values > max(label_ids)), max(label_ids) + 1, values)]


def to_training_labels(values: np.ndarray, reduce_zero_label: bool) -> np.ndarray:
    """Returns uint8 labels for the loss: with `reduce_zero_label`, 0 becomes 255 (ignore) and k becomes k - 1."""
    if not reduce_zero_label:
        return values.astype(np.uint8)
    return np.where((values == 0) | (values == IGNORE), IGNORE, values - 1).astype(np.uint8)


def check_values(path: str | os.PathLike[str], values: np.ndarray, num_classes: int, reduce_zero_label: bool) -> None:
    """Raises ValueError, naming file and value, unless all values are classes or 255 (ignore).

    Args:
        values: of `read_label`.
        num_classes: K; allowed are 0..K-1, or with `reduce_zero_label` 0 (ignore) and 1..K.
    """
    first, last = (0, num_classes) if reduce_zero_label else (0, num_classes - 1)
    wrong = values[((values < first) | (values > last)) & (values != IGNORE)]
    if wrong.size:
        listed = first_few([int(value) for value in np.unique(values)], 8)
        raise UserError(
            f"label file {path} holds the value {int(wrong[0])} ({wrong.size} pixels), outside the "
            f"{num_classes} classes ({first}..{last}, {IGNORE} = ignore): correct the file, name all classes with "
            f"--classes, or map numbers to classes with layout.label_ids=A,B,... (the file holds {listed})"
        )
