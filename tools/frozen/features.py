"""Features of images by a frozen encoder, in one pass and kept in a file: an interrupted pass goes on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.sources import ImageList
from pretrain.training.run_folder import write_json
from tools.frozen.center_crop import TEST_BATCH, CenterCrop, center_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCHES_A_SAVE = 20


@torch.no_grad()
def extract(
    fabric: Fabric,
    features_of: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    images: ImageList,
    crop: CenterCrop,
    path: Path,
    workers: int,
    title: str,
) -> np.ndarray:
    """Returns the features of all images, float32 `(N, *shape)`, as a file mapped into memory.

    Args:
        features_of: from normalised images `(B, 3, S, S)` to their features `(B, *shape)`.
        path: `.npy` file, whose finished rows are not computed again; `path.json` counts them.
    """
    counter = path.with_suffix(".json")
    done = json.loads(counter.read_text(encoding="utf-8"))["images"] if counter.exists() and path.exists() else 0
    path.parent.mkdir(exist_ok=True)
    mode = "r+" if done else "w+"
    features = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=(len(images), *shape))
    if not done:
        counter.unlink(missing_ok=True)  # of a file that is gone: the rows of this one are still to come
        _reserve(path)
    saved = done
    pixel_norm = fabric.to_device(PixelNorm())
    for indices, crops in center_batches(fabric, images, crop, workers, title, start=done):
        with fabric.autocast():
            found = features_of(pixel_norm(crops))
        features[indices.numpy()] = found.float().cpu().numpy()
        done += len(indices)
        if done - saved >= BATCHES_A_SAVE * TEST_BATCH or done == len(images):
            features.flush()
            write_json(counter, {"images": done})
            saved = done
    return features


def means_of_maps(maps: list[Tensor]) -> Tensor:
    """Returns the mean of each map over its places, float32 `(B, layers, C)`, from maps `(B, C, H, W)`."""
    return torch.stack([layer.float().mean(dim=(2, 3)) for layer in maps], dim=1)


def _reserve(path: Path) -> None:
    """Takes the space of a file from the disk, where the system can: a full disk would end the process at a write."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                error.filename = str(path)
                raise
