"""mIoU of a segmentor on a split, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mmengine.dataset import pseudo_collate
from mmseg.evaluation import IoUMetric

from pretrain.training.distributed import any_algorithm, gather
from tools.common.shards import shard_of
from tools.segmentation.dataset import SegPairs
from tools.segmentation.model import Segmentor
from tools.segmentation.tta import MeanOfViews

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class ClassIoU(IoUMetric):
    """mmseg's IoU, unrounded and with the value of each class.

    A class without a pixel in the labels is undefined (None) and not part of the means. mmseg counts such a class as
    0 as soon as one pixel is predicted as it; where all classes occur, as in ADE20K, the numbers are equal.
    """

    default_prefix = ""

    @staticmethod
    def intersect_and_union(
        pred_label: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_index: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns pixels a class, int64 `(K,)`: intersection, union, predicted, labelled.

        In integers: mmseg's float32 histogram stops counting at 2 ** 24 pixels of a class in one image.
        """
        counted = label != ignore_index
        predicted, label = pred_label[counted].long(), label[counted].long()
        intersect, predicted, label = (
            torch.bincount(ids[(ids >= 0) & (ids < num_classes)], minlength=num_classes)
            for ids in (predicted[predicted == label], predicted, label)
        )
        return intersect, predicted + label - intersect, predicted, label

    def compute_metrics(self, results: list[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        """Returns `mIoU, aAcc, mAcc` and `per_class` in percent."""
        intersect, union, _, labelled = (torch.stack(areas).double().sum(0) for areas in zip(*results, strict=True))
        return summarise(intersect, union, labelled, self.dataset_meta["classes"])


def summarise(intersect: torch.Tensor, union: torch.Tensor, labelled: torch.Tensor, names: list[str]) -> dict[str, Any]:
    """Returns `{"mIoU", "aAcc", "mAcc", "per_class": {name: IoU}}` in percent, None where undefined.

    Args:
        intersect, union, labelled: pixels a class, `(K,)`.
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


@torch.no_grad()
def evaluate(fabric: Fabric, segmentor: Segmentor, dataset: SegPairs, use_tta: bool, workers: int) -> dict[str, Any]:
    """Returns the contents of results.json; the same in every process.

    One image at a time: they differ in size.

    Args:
        fabric: processes; evaluation is in float32 whatever the training was in.
        dataset: of the split, with the pipeline of the evaluation.
        use_tta: whether that pipeline yields several views of an image.
    """
    metric = ClassIoU()
    metric.dataset_meta = dataset.metainfo
    was_training = segmentor.training
    segmentor.eval()
    predict = MeanOfViews(segmentor.model).test_step if use_tta else segmentor.predict
    try:
        for batch in shard_of(fabric, dataset, workers, "evaluate", 1, collate_fn=pseudo_collate):
            samples = [sample.to_dict() for sample in predict(batch)]
            with any_algorithm():  # histograms of pixels
                metric.process(batch, samples)
    finally:
        segmentor.train(was_training)
    return metric.compute_metrics(gather([tuple(area.cpu() for area in areas) for areas in metric.results]))
