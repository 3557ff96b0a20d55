"""The torchvision engine: recipe -> Mask or Faster R-CNN -> losses in training, detections in the original's pixels."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection import roi_heads

from det_configs.common.recipe import DetRecipe
from pretrain.training.distributed import any_algorithm
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.torchvision import mask_rcnn
from splitmask_backbones.vit import VisionTransformer
from tools.detection.detector import Detector
from tools.detection.targets import Target

# Targets are cut out with a RoIAlign that nothing is learned through, and its forward pass has one order. Where torch
# is told to take deterministic algorithms only, torchvision's way to one takes every pixel of a mask for each box.
roi_heads.project_masks_on_boxes = any_algorithm()(roi_heads.project_masks_on_boxes)


class TorchvisionDetector(Detector):
    """torchvision's Mask R-CNN, or Faster R-CNN without masks."""

    def forward(self, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        images, targets = batch
        named = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        for entry, target in zip(named, targets, strict=True):
            if target.masks is not None:
                entry["masks"] = target.masks
        losses = self.model([image.float() / 255 for image in images], named)
        return {"loss": sum(losses.values()), **losses}

    def found_in(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        found = self.model([image.float() / 255])[0]
        return found["boxes"], found["labels"] - 1, found["scores"], found.get("masks")


def build_detector(
    recipe: DetRecipe, num_classes: int, weights: str | Path | None = None, encoder_config: dict[str, Any] | None = None
) -> TorchvisionDetector:
    """Returns the detector of a recipe; arguments and errors as of `engines.build_detector`."""
    if encoder_config is not None:
        encoder = VisionTransformer(**encoder_config)
    else:
        encoder = resolve_encoder(recipe.encoder, weights, pyramid=recipe.pyramid, **recipe.encoder_arguments())
    model = mask_rcnn(
        encoder,
        num_classes=num_classes + 1,
        masks=recipe.masks,
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
        size_divisible=recipe.img_size if recipe.square_pad else encoder.patch_size,
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
    return TorchvisionDetector(model, recipe.masks)
