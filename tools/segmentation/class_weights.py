"""Loss weights of the classes by how often they occur."""

from typing import Any

import numpy as np

CLASS_WEIGHTS = {"median_frequency": 1.0, "sqrt_median_frequency": 0.5}
"""Ways to weigh the classes, with the power to which `class_weights` takes the median-frequency weights."""


def class_weights(way: str, counts: dict[str, Any]) -> list[float]:
    """Returns a loss weight a class, from the counts of a split: rare classes weigh more.

    The frequency of a class is its share of the labelled pixels of the images that hold it; its weight is the median
    of all frequencies over it (Eigen and Fergus 2015), or the square root of that: where a class weighs a hundredth of
    another, the model takes most of its pixels for the other. A class that does not occur has weight 1.

    Args:
        way: of `CLASS_WEIGHTS`.
        counts: of one split, of `check.check_splits`.
    """
    classes = counts["classes"].values()
    shares = [entry["pixels"] / entry["labelled_pixels_of_images"] if entry["pixels"] else 0.0 for entry in classes]
    median = float(np.median([share for share in shares if share]))
    return [(median / share) ** CLASS_WEIGHTS[way] if share else 1.0 for share in shares]
