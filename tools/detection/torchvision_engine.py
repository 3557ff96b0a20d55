"""The torchvision engine: recipe -> Mask R-CNN -> losses in training, detections in pixels of the original image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.torchvision import mask_rcnn
from splitmask_backbones.vit import VisionTransformer
from tools.detection.dataset import Target
from tools.detection.detect import scale_boxes, to_rles


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
        boxes = scale_boxes(found["boxes"], (image.shape[-2], image.shape[-1]), size)
        return {
            "boxes": boxes.double().numpy(),
            "labels": found["labels"].cpu().numpy() - 1,
            "scores": found["scores"].double().cpu().numpy(),
            "masks": to_rles(found["masks"].float().cpu(), boxes, size),
        }


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
    if recipe.cascade:
        raise UserError("cascade=true needs --engine detectron2: torchvision has no Cascade R-CNN")
    if encoder_config is not None:
        encoder = VisionTransformer(**encoder_config)
    else:
        encoder = resolve_encoder(recipe.encoder, weights, pyramid=recipe.pyramid, **recipe.encoder_arguments())
    model = mask_rcnn(
        encoder,
        num_classes=num_classes + 1,
        pyramid=recipe.pyramid,
        out_channels=recipe.out_channels,
        anchor_sizes=recipe.anchor_sizes,
        aspect_ratios=recipe.aspect_ratios,
        pyramid_norm=recipe.pyramid_norm,
        rpn_convs=recipe.rpn_convs,
        box_head=recipe.box_head,
        box_head_width=recipe.box_head_width,
        mask_head_width=recipe.mask_head_width,
        mask_head_convs=recipe.mask_head_convs,
        mask_head_norm=recipe.mask_head_norm,
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
