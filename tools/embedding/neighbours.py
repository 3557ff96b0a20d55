"""Which images are near each other by their vectors, and a picture of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.data.sources import ImageList
from tools.common.plots import save_grid

QUERIES, NEIGHBOURS = 8, 5
"""Rows and further columns of the picture."""
AT_ONCE = 65_536


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the images nearest to some, int64 `(Q, count)`, the nearest first, without themselves.

    By the cosine after the mean of all vectors is taken away: what all images share says nothing about any of them.

    Args:
        vectors: float32 `(N, C)`.
        queries: indices int64 `(Q,)`.
        count: below N.
    """
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    wanted = _unit(vectors[queries] - mean)
    cosines = np.concatenate(
        [wanted @ _unit(vectors[start : start + AT_ONCE] - mean).T for start in range(0, len(vectors), AT_ONCE)], axis=1
    )
    cosines[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def save_neighbours(vectors: np.ndarray, images: ImageList, path: Path) -> None:
    """Writes a row for each of some images, evenly spread, and those nearest to it; nothing for a single image."""
    count = min(NEIGHBOURS, len(images) - 1)
    if count < 1:
        return
    queries = np.unique(np.linspace(0, len(images) - 1, QUERIES).round().astype(np.int64))
    columns = {"image": queries}
    for place, column in enumerate(nearest(vectors, queries, count).T, start=1):
        columns["nearest" if place == 1 else f"{place}."] = column
    save_grid({title: [images.read(int(index)) for index in column] for title, column in columns.items()}, path)
