"""mIoU over a whole split, class by class, as strict JSON in percent."""

from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's IoU, unrounded and with the value of each class.

    A class without a pixel in the labels is undefined (None) and not part of the means. mmseg counts such a class as
    0 as soon as one pixel is predicted as it; where all classes occur, as in ADE20K, the numbers are equal.
    """

    default_prefix = ""

    def compute_metrics(self, results: list[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        """Returns `mIoU, aAcc, mAcc` and `per_class` in percent."""
        intersect, union, _, labelled = (torch.stack(areas).double().sum(0) for areas in zip(*results, strict=True))
        return summarise(intersect, union, labelled, self.dataset_meta["classes"])


def summarise(intersect: torch.Tensor, union: torch.Tensor, labelled: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Returns `{"mIoU", "aAcc", "mAcc", "per_class": {name: IoU}}` in percent, None where undefined.

    Args:
        intersect, union, labelled: pixels a class, `(K,)`.
        names: the K classes.
    """
    there = labelled > 0
    if not there.any():
        return {"mIoU": None, "aAcc": None, "mAcc": None, "per_class": dict.fromkeys(names)}
    iou, accuracy = 100 * intersect / union, 100 * intersect / labelled
    return {
        "mIoU": iou[there].mean().item(),
        "aAcc": (100 * intersect.sum() / labelled.sum()).item(),
        "mAcc": accuracy[there].mean().item(),
        "per_class": {n: v if t else None for n, v, t in zip(names, iou.tolist(), there.tolist(), strict=True)},
    }
