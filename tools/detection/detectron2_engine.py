"""The detectron2 engine: recipe -> detectron2's (Cascade) Mask R-CNN, losses in training, detections in pixels.

The detector is detectron2's and is built from the LazyConfig of the recipe; data, loop and metric are the project's
own, so that both engines stop, resume and report alike.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from det_configs.common.lazy import lazy_model
from det_configs.common.recipe import DetRecipe
from splitmask_backbones.vit import VisionTransformer
from tools.detection.dataset import Target
from tools.detection.detect import scale_boxes, to_rles

# detectron2's names of the losses (a cascade's have a stage behind) and those of metrics.jsonl, as torchvision's.
LOSSES = {
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
    "loss_mask": "loss_mask",
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
}


class Detectron2Detector(nn.Module):
    """detectron2's detector as the training loop takes it: a batch in, named losses out.

    Attributes:
        model: a `GeneralizedRCNN`; images come in at their final size.
        metric_names: what the loop logs; a cascade's stages are summed.
    """

    metric_names = ("loss", *LOSSES.values())

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def encoder(self) -> VisionTransformer:
        """The backbone's encoder."""
        return self.model.backbone.encoder  # type: ignore[union-attr, return-value]

    def forward(self, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        """Returns "loss", the sum, and its five parts, for uint8 images `(3, H, W)` and their targets."""
        from detectron2.structures import BitMasks, Boxes, Instances
        from detectron2.utils.events import EventStorage

        inputs = []
        for image, target in zip(*batch, strict=True):
            instances = Instances((image.shape[-2], image.shape[-1]))
            instances.gt_boxes = Boxes(target["boxes"].float())
            instances.gt_classes = target["labels"] - 1
            instances.gt_masks = BitMasks(target["masks"].bool())
            inputs.append({"image": image, "instances": instances})
        with EventStorage():  # detectron2's heads write statistics into one; nobody reads them here
            parts = self.model(inputs)
        losses: dict[str, Tensor] = {}
        for name, value in parts.items():
            known = LOSSES[name.split("_stage")[0]]
            losses[known] = losses.get(known, 0.0) + value
        return {"loss": sum(losses.values()), **losses}  # type: ignore[dict-item]

    @torch.inference_mode()
    def detect(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Returns what is found in one image, in pixels of the original image of `size` `(H, W)`.

        Args:
            image: uint8 `(3, h, w)`, as resized for evaluation.
            size: `(H, W)` of the original.

        Returns:
            boxes float `(N, 4)` x1, y1, x2, y2; labels int `(N,)` from 0; scores `(N,)`; masks: N RLEs. NumPy.
        """
        found = self.model.inference([{"image": image}], do_postprocess=False)[0]  # type: ignore[operator]
        boxes = scale_boxes(found.pred_boxes.tensor, (image.shape[-2], image.shape[-1]), size)
        return {
            "boxes": boxes.double().numpy(),
            "labels": found.pred_classes.cpu().numpy(),
            "scores": found.scores.double().cpu().numpy(),
            "masks": to_rles(found.pred_masks.float().cpu(), boxes, size),
        }


def quiet_warnings() -> None:
    """Hides warnings of detectron2 and torch about each other: the user can do nothing about them."""
    for module in ("detectron2", "torch", "fvcore", "iopath"):
        warnings.filterwarnings("ignore", module=rf"{module}\b")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)


def build_detector(
    recipe: DetRecipe,
    num_classes: int,
    weights: str | Path | None = None,
    encoder_config: dict[str, Any] | None = None,
) -> Detectron2Detector:
    """Returns the detector of a recipe; arguments and errors as those of the torchvision engine."""
    quiet_warnings()
    from detectron2.config import instantiate

    file = None if weights is None else str(weights)
    return Detectron2Detector(instantiate(lazy_model(recipe, num_classes, file, encoder_config)))
