"""Accuracy of a classifier on a split, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.classification.data import LabelledImages
from tools.classification.model import Classifier
from tools.frozen.center_crop import CenterCrop, center_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Counts:
    """Right predictions, images and loss, class by class."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        # Rows: images, right ones, right ones among five, sum of losses. float64 counts exactly and sums well.
        self.table = torch.zeros(4, num_classes, dtype=torch.float64, device=device)

    def add(self, scores: Tensor, labels: Tensor, losses: Tensor | None = None) -> None:
        """Adds a batch: scores `(B, K)` (the largest is the prediction), labels int64 `(B,)`, losses `(B,)`."""
        ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
        hits = ranked == labels[:, None]
        rows = [torch.ones_like(labels), hits[:, 0], hits.any(dim=1), torch.zeros_like(labels)]
        if losses is not None:
            rows[3] = losses
        for row, values in zip(self.table, rows, strict=True):
            row.index_add_(0, labels, values.double())

    def results(self, classes: list[str]) -> dict[str, Any]:
        """Returns the contents of results.json: percent, per class None where there is no image; loss in nats."""
        images, right, among_five, losses = self.table.cpu()
        total = float(images.sum())
        per_class = {name: 100 * float(right[i] / images[i]) if images[i] else None for i, name in enumerate(classes)}
        return {
            "top1": 100 * float(right.sum()) / total,
            "top5": 100 * float(among_five.sum()) / total,
            "num_images": int(total),
            "per_class": per_class,
            "loss": float(losses.sum()) / total,
        }


@torch.no_grad()
def evaluate(
    fabric: Fabric, classifier: Classifier, split: LabelledImages, classes: list[str], crop: CenterCrop, workers: int
) -> dict[str, Any]:
    """Returns `{"top1", "top5", "num_images", "per_class", "loss"}` of a split; the same in every process.

    In float32 whatever the training's precision: bfloat16 ties the likeliest classes.

    Args:
        split: images and labels.
    """
    counts = Counts(len(classes), fabric.device)
    labels = torch.tensor(split.labels, device=fabric.device)
    was_training = classifier.training
    classifier.eval()
    try:
        for indices, images in center_batches(fabric, split.images, crop, workers, "evaluate"):
            logits = classifier.predict(images)
            own = labels[fabric.to_device(indices)]
            counts.add(logits, own, F.cross_entropy(logits, own, reduction="none"))
    finally:
        classifier.train(was_training)
    if fabric.world_size > 1:
        torch.distributed.all_reduce(counts.table)
    return counts.results(classes)
