"""Fewer labels: nested shares of the training images."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def labelled(split: str, items: Sequence[T], share: float, seed: int) -> list[T]:
    """Returns `ceil(share * len(items))` of the items of "train" in their order, drawn by `seed`; all those of "val".

    Those of a smaller share are among those of a larger one with the same seed, so that a curve over labels adds
    images and never exchanges them.

    Args:
        share: above 0 and up to 1; 1 for all.
    """
    share = share if split == "train" else 1.0
    # 0.07 of 100 are 7, in floats 7.000000000000001.
    count = max(math.ceil(round(share * len(items), 6)), min(1, len(items)))
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[index] for index in sorted(order[:count])]
