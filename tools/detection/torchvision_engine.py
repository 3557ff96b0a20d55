"""The torchvision engine: recipe -> Mask R-CNN -> losses in training, detections in pixels of the original image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.torchvision import mask_rcnn
from splitmask_backbones.vit import VisionTransformer
from tools.detection.dataset import EvaluationImages, Target

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TorchvisionDetector(nn.Module):
    """Mask R-CNN as the training loop takes it: a batch in, named losses out.

    Attributes:
        model: torchvision's Mask R-CNN; images come in at their final size.
        metric_names: what the loop logs.
    """

    metric_names = ("loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def encoder(self) -> VisionTransformer:
        """The backbone's encoder."""
        return self.model.backbone.encoder  # type: ignore[union-attr, return-value]

    def forward(self, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        """Returns "loss", the sum, and its five parts, for uint8 images `(3, H, W)` and their targets."""
        images, targets = batch
        targets = [{**target, "boxes": target["boxes"].float()} for target in targets]
        losses = self.model([image.float() / 255 for image in images], targets)
        return {"loss": sum(losses.values()), **losses}

    @torch.inference_mode()
    def detect(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Returns what is found in one image, in pixels of the original image of `size` `(H, W)`.

        Args:
            image: uint8 `(3, h, w)`, as resized for evaluation.
            size: `(H, W)` of the original.

        Returns:
            boxes float `(N, 4)` x1, y1, x2, y2; labels int `(N,)` from 0; scores `(N,)`; masks: N RLEs. NumPy.
        """
        found = self.model([image.float() / 255])[0]
        height, width = image.shape[-2:]
        scale = torch.tensor([size[1] / width, size[0] / height] * 2, device=image.device)
        boxes = found["boxes"].float() * scale
        return {
            "boxes": boxes.cpu().numpy().astype(np.float64),
            "labels": found["labels"].cpu().numpy() - 1,
            "scores": found["scores"].float().cpu().numpy().astype(np.float64),
            "masks": to_rles(found["masks"].float().cpu(), boxes.cpu(), size),
        }


def to_rles(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Returns mask probabilities `(N, 1, M, M)` within their boxes as RLEs of the image, cut at 0.5.

    As torchvision's `paste_masks_in_image`, but it resamples one box at a time: a picture of a thousand pixels a side
    with hundreds of detections would need a GB there.
    """
    padded, scale = expand_masks(masks, padding=1)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    canvas = np.zeros((*size, 1), np.uint8, order="F")  # COCO's encoder reads column by column
    rles: list[dict[str, Any]] = []
    for mask, (x1, y1, x2, y2) in zip(padded, corners, strict=True):
        height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        pasted = F.interpolate(mask[None], size=(height, width), mode="bilinear", align_corners=False)[0, 0] > 0.5
        top, bottom, left, right = max(y1, 0), min(y2 + 1, size[0]), max(x1, 0), min(x2 + 1, size[1])
        region = canvas[top:bottom, left:right, 0]
        region[:] = pasted[top - y1 : bottom - y1, left - x1 : right - x1].numpy()
        rle = coco_mask.encode(canvas)[0]
        region[:] = 0
        rles.append({"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")})
    return rles


def build_detector(
    recipe: DetRecipe,
    num_classes: int,
    weights: str | Path | None = None,
    encoder_config: dict[str, Any] | None = None,
) -> TorchvisionDetector:
    """Returns the detector of a recipe.

    Args:
        recipe: all values.
        num_classes: without background.
        weights: an encoder file; None for random initialisation.
        encoder_config: constructor arguments of the encoder of a trained detector: nothing is loaded, its own weights
            follow.

    Raises:
        ValueError: the weights do not suit the recipe.
    """
    if encoder_config is not None:
        encoder = VisionTransformer(**encoder_config)
    else:
        overrides: dict[str, Any] = {"img_size": recipe.img_size, "drop_path_rate": recipe.drop_path}
        if recipe.positions is not None:
            overrides["positions"] = recipe.positions
        if recipe.grad_checkpointing:
            overrides["grad_checkpointing"] = True
        encoder = resolve_encoder(recipe.encoder, weights, pyramid=recipe.pyramid, **overrides)
    model = mask_rcnn(
        encoder,
        num_classes=num_classes + 1,
        pyramid=recipe.pyramid,
        out_channels=recipe.out_channels,
        anchor_sizes=recipe.anchor_sizes,
        aspect_ratios=recipe.aspect_ratios,
        box_head=recipe.box_head,
        box_head_width=recipe.box_head_width,
        mask_head_width=recipe.mask_head_width,
        mask_head_convs=recipe.mask_head_convs,
        resize=False,
        rpn_pre_nms_top_n_train=recipe.rpn_pre_nms_train,
        rpn_post_nms_top_n_train=recipe.rpn_post_nms_train,
        rpn_pre_nms_top_n_test=recipe.rpn_pre_nms_test,
        rpn_post_nms_top_n_test=recipe.rpn_post_nms_test,
        rpn_batch_size_per_image=recipe.rpn_batch,
        box_batch_size_per_image=recipe.rois_per_image,
        box_positive_fraction=recipe.roi_positive_fraction,
        box_score_thresh=recipe.score_threshold,
        box_nms_thresh=recipe.nms_threshold,
        box_detections_per_img=recipe.detections_per_image,
    )
    return TorchvisionDetector(model)


def detect_all(
    fabric: Fabric,
    detector: TorchvisionDetector,
    paths: list[Path],
    sizes: list[tuple[int, int]],
    recipe: DetRecipe,
    workers: int,
    title: str = "evaluate",
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(index, detections)` of this process's share of the images, one image at a time.

    One at a time, so that no image's padding depends on its neighbours. Shows a progress bar with the time left.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    own = range(fabric.global_rank, len(paths), fabric.world_size)
    loader = DataLoader(EvaluationImages(paths, recipe), batch_size=None, sampler=own, num_workers=workers)
    was_training = detector.training
    detector.eval()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True, disable=not fabric.is_global_zero) as bar:
            for index, image in bar.track(loader, total=len(own)):
                with fabric.autocast():
                    found = detector.detect(fabric.to_device(image), sizes[int(index)])
                yield int(index), found
    finally:
        detector.train(was_training)
