"""mIoU of a segmentor on a split, over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mmengine.dataset import pseudo_collate

from pretrain.training.distributed import gather
from tools.finetuning.shares import share_of
from tools.segmentation.dataset import SegPairs
from tools.segmentation.model import Segmentor
from tools.segmentation.results import ClassIoU
from tools.segmentation.tta import MeanOfViews

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@torch.no_grad()
def evaluate(fabric: Fabric, segmentor: Segmentor, dataset: SegPairs, use_tta: bool, workers: int) -> dict[str, Any]:
    """Returns the contents of results.json; the same in every process.

    One image at a time: they differ in size.

    Args:
        fabric: processes; evaluation is in float32 whatever the training was in.
        segmentor: on the device.
        dataset: of the split, with the pipeline of the evaluation.
        use_tta: whether that pipeline yields several views of an image.
        workers: data processes.
    """
    metric = ClassIoU()
    metric.dataset_meta = dataset.metainfo
    was_training = segmentor.training
    segmentor.eval()
    if fabric.world_size > 1:
        for buffer in segmentor.buffers():  # batch statistics are each process's own: the first one's count
            torch.distributed.broadcast(buffer, 0)
    predict = MeanOfViews(segmentor.model).test_step if use_tta else segmentor.predict
    try:
        for batch in share_of(fabric, dataset, workers, "evaluate", 1, collate_fn=pseudo_collate):
            metric.process(batch, [sample.to_dict() for sample in predict(batch)])
    finally:
        segmentor.train(was_training)
    return metric.compute_metrics(gather([tuple(area.cpu() for area in areas) for areas in metric.results]))
