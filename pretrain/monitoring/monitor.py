"""A look at a method while it trains: does it learn, does it collapse, does it learn by heart?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from pretrain.data.augment import to_tensor
from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.sources import ImageList
from pretrain.data.views import Views, spread_items
from pretrain.methods.base import Method
from pretrain.methods.build import build_views
from pretrain.monitoring.attention import watched
from pretrain.monitoring.knn import knn_votes
from pretrain.monitoring.labelled import Labelled
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import token_statistics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH = 32
"""Images that are looked at together."""

FIXED_EPOCH = 2**40
"""Crops and masks of this epoch, which no run reaches: the same at every look."""


def whole_image(img_size: int, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
    """Returns `image` alone, uint8 `(3, S, S)`: the largest central square, resized. Nothing is random."""
    return {"image": to_tensor(ImageOps.fit(image, (img_size, img_size), Image.Resampling.BICUBIC))}


def fixed_batches(views: Views, limit: int, workers: int) -> list[dict[str, Tensor]]:
    """Returns batches of at most `limit` items, of images spread evenly over the list; the same whenever called."""
    return list(spread_items(views, min(limit, len(views)), workers, FIXED_EPOCH, BATCH))


def effective_rank(features: Tensor) -> float:
    """Returns `exp(entropy)` of the singular values of centred features `(M, C)`: 1 to `min(M - 1, C)`; 0 if all equal.

    Roy and Vetterli 2007; as RankMe (Garrido et al. 2023), but centred, so that a common offset does not count.
    """
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    if values.sum() <= 1e-9 * max(1.0, float(features.abs().max())):
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def match_rank1(descriptor_a: Tensor, descriptor_b: Tensor) -> float:
    """Returns the share of images whose other half is the nearest of all M other halves, by cosine, both ways.

    By chance `1 / M`. Descriptors are `(M, C)`, row by row of the same images.
    """
    similarity = F.normalize(descriptor_a.float(), dim=1) @ F.normalize(descriptor_b.float(), dim=1).T
    own = torch.arange(len(similarity), device=similarity.device)
    hits = [(similarity.argmax(dim=dim) == own).float().mean() for dim in (0, 1)]
    return float(sum(hits) / 2)


def color_rank1(color_a: Tensor, color_b: Tensor) -> float:
    """Returns `match_rank1` of `colors` `(M, C)`, each standardised: how far matching gets by colours alone."""
    deviation, mean = torch.std_mean(torch.cat([color_a, color_b]), dim=0)
    return match_rank1(*((color - mean) / deviation.clamp(min=1e-6) for color in (color_a, color_b)))


@contextmanager
def in_evaluation(method: nn.Module) -> Iterator[None]:
    """Within it, nothing is dropped or differentiated; afterwards the method is in the mode it was in."""
    was_training = method.training
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        method.train(was_training)


class Monitor:
    """Called, it returns named numbers and leaves the method as it was: a run's result does not depend on it.

    With what the method's `observe` gives for fixed crops, of training images (`train_*`) and of images kept out of
    training (`holdout_*`): its loss, `token_accuracy`, `inpaint_gain`, `match_rank1`. The gain is the entropy of the
    targets minus the inpainting loss, in nats: below 0 a constant guess of how often each token id occurs would do
    better, and nothing has been learned from what surrounds a patch. (The guess knows the shares in these very crops:
    of a few dozen it has an edge.) Two more (of SplitMask) are by how much that loss rises when things change places
    within a crop, in a fixed random cycle. `query_gain`: the answers for the hidden places; at 0 the same is said of
    all, and no more is used than what a crop is like as a whole. `neighbour_gain`: the contents of the observed places,
    for encoder and decoder alike; at 0 it does not matter what lies where. `color_rank1` (of SplitMask) is the
    `match_rank1` of the colours that the branches see: where matching gets little further, it has learned colours, and
    `branch_jitter` takes them away. Token ids: how many are used, the entropy in bits and the
    share of the most frequent, of the targets and of the predictions on training images. Of the encoder's last block,
    averaged over the patches of whole images: `effective_rank` on training images, and `knn_accuracy` (cosine, 20
    neighbours) on labelled ones. `attention_entropy`, on whole training images, is that of the block with the least:
    from 0 (each token attends to a single one) to 1 (to all alike).

    Args:
        method: is looked at; of DINO the encoder is the teacher's.
        recipe: of the run.
        images: that are trained on.
        holdout: images kept out, or None.
        labelled: or None.
        num_images: of each kind that are looked at, at most.
        fabric: device and precision.
        workers: data processes for the first look; what they make stays in memory.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        images: ImageList,
        *,
        holdout: ImageList | None,
        labelled: Labelled | None,
        num_images: int,
        fabric: Fabric,
        workers: int,
    ) -> None:
        self.method, self.fabric, self.labelled = method, fabric, labelled
        self._limit, self._workers = num_images, workers
        patch_size = recipe.encoder_sizes["patch_size"]
        recipe = replace(recipe, local_crops=0)  # DINO is looked at through its large crops
        self._views = {"train": build_views(recipe, images, patch_size)}
        if holdout is not None:
            self._views["holdout"] = build_views(recipe, holdout, patch_size)
        whole = partial(whole_image, recipe.img_size)
        self._whole = {"train": Views(images, 0, whole)}
        if labelled is not None:
            self._whole["labelled"] = Views(labelled.images, 0, whole)
        self._kept: dict[str, list[dict[str, Tensor]]] = {}
        self._normalize = PixelNorm()

    def __call__(self) -> dict[str, float | None]:
        """Returns the numbers, and the `seconds` that they took."""
        start = time.monotonic()
        with in_evaluation(self.method):
            values = self._of_method("train")
            if "holdout" in self._views:
                values |= {name: value for name, value in self._of_method("holdout").items() if "holdout_" in name}
            with watched(self.method.encoder.blocks) as entropies:
                values["effective_rank"] = effective_rank(self._features("train"))
            # None where all blocks have decomposed relative positions, whose scores are not looked at.
            of_blocks = [float(torch.cat(found).mean()) for found in entropies if found]
            values["attention_entropy"] = min(of_blocks, default=None)
            if self.labelled is not None:
                values["knn_accuracy"] = self._knn(self.labelled)
        return {**values, "seconds": time.monotonic() - start}

    def _batches(self, kind: str, views: Views, limit: int) -> Iterator[dict[str, Tensor]]:
        if kind not in self._kept:
            self._kept[kind] = fixed_batches(views, limit, self._workers)
        for batch in self._kept[kind]:
            yield self.fabric.to_device(batch)

    def _of_method(self, side: str) -> dict[str, float | None]:
        seen: dict[str, list[Tensor]] = {}
        sizes = []
        for batch in self._batches(f"{side} crops", self._views[side], self._limit):
            sizes.append(len(next(iter(batch.values()))))
            with self.fabric.autocast():  # what is measured of these is computed as it comes, in float32
                observed = self.method.observe(batch)
            for name, value in observed.items():
                seen.setdefault(name, []).append(value.float() if value.is_floating_point() else value)
        values: dict[str, float | None] = {}
        for name, parts in seen.items():
            if name.startswith("loss"):
                values[f"{side}_{name}"] = float(np.average([float(part) for part in parts], weights=sizes))
        rows = {name: torch.cat(parts) for name, parts in seen.items() if not name.startswith("loss")}
        if "targets" in rows:
            values[f"{side}_token_accuracy"] = float((rows["targets"] == rows["predictions"]).float().mean())
            ids = {name: rows[name].cpu() for name in ("targets", "predictions")}
            found = {name: token_statistics(these, int(these.max()) + 1) for name, these in ids.items()}
            if (loss := values.get(f"{side}_loss_inpaint")) is not None:  # DINO's targets are not token ids
                values[f"{side}_inpaint_gain"] = math.log(2) * found["targets"].entropy_bits - loss
                for name, swapped in (("query", "answers"), ("neighbour", "contents")):
                    if (other := values.pop(f"{side}_loss_swapped_{swapped}", None)) is not None:
                        values[f"{side}_{name}_gain"] = other - loss
            for name, statistics in found.items():
                values |= {f"{name}_{key}": value for key, value in asdict(statistics).items() if key != "num_patches"}
        if "descriptor_a" in rows:
            values[f"{side}_match_rank1"] = match_rank1(rows["descriptor_a"], rows["descriptor_b"])
            values[f"{side}_color_rank1"] = color_rank1(rows["color_a"], rows["color_b"])
        return values

    def _features(self, kind: str) -> Tensor:
        """Returns the mean of the last block's patch tokens, before the final norm, float32 `(M, C)` on the CPU."""
        views = self._whole[kind]
        rows = []
        for batch in self._batches(f"{kind} whole", views, self._limit if kind == "train" else len(views)):
            with self.fabric.autocast():
                image = self._normalize.to(batch["image"].device)(batch["image"])
                maps = self.method.encoder.forward_maps(image, False)
            rows.append(maps[-1].float().mean(dim=(2, 3)).cpu())
        return torch.cat(rows)

    def _knn(self, labelled: Labelled) -> float:
        features, labels = self._features("labelled"), torch.tensor(labelled.labels)
        first = labelled.num_known
        votes = knn_votes(features[:first], labels[:first], features[first:], labelled.num_classes)
        return float((votes.argmax(dim=1) == labels[first:]).float().mean())
