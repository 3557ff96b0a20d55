"""Features of every layer, extracted in one pass over the images and kept in a file: an interrupted pass goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pretrain.data.pixel_norm import PixelNorm
from pretrain.training.run_folder import write_json
from splitmask_backbones.vit import VisionTransformer
from tools.classification.augment import CentralCrop
from tools.classification.data import LabelledImages
from tools.classification.dataset import TEST_BATCH, central_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCHES_A_SAVE = 20


@torch.no_grad()
def extract(
    fabric: Fabric,
    encoder: VisionTransformer,
    images: LabelledImages,
    crop: CentralCrop,
    path: Path,
    workers: int,
    title: str,
) -> np.ndarray:
    """Returns the features of a split, float32 `(N, layers, C)`, as a file mapped into memory.

    A layer's feature is the mean of the patch tokens of one of the encoder's `out_indices`, before the final norm.

    Args:
        path: `.npy` file, whose finished rows are not computed again; `path.json` counts them.
    """
    shape = (len(images), len(encoder.out_indices), encoder.embed_dim)
    counter = path.with_suffix(".json")
    done = json.loads(counter.read_text(encoding="utf-8"))["images"] if counter.exists() and path.exists() else 0
    path.parent.mkdir(exist_ok=True)
    mode = "r+" if done else "w+"
    features = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)
    saved = done
    pixel_norm = fabric.to_device(PixelNorm())
    for indices, crops in central_batches(fabric, images.images, crop, workers, title, start=done):
        with fabric.autocast():
            maps = encoder.forward_maps(pixel_norm(crops), norm_maps=False)
        means = torch.stack([layer.float().mean(dim=(2, 3)) for layer in maps], dim=1)
        features[indices.numpy()] = means.cpu().numpy()
        done += len(indices)
        if done - saved >= BATCHES_A_SAVE * TEST_BATCH or done == len(images):
            features.flush()
            write_json(counter, {"images": done})
            saved = done
    return features
