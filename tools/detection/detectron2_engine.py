"""The detectron2 engine: recipe -> detectron2's (Cascade) Mask R-CNN, losses in training, detections in pixels.

The detector is detectron2's and is built from the LazyConfig of the recipe; data, loop and metric are the project's
own, so that both engines stop, resume and report alike.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from det_configs.common.lazy import lazy_model
from det_configs.common.recipe import DetRecipe
from tools.detection.detector import Detector
from tools.detection.targets import Target

# detectron2's names of the losses (a cascade's have a stage behind) and those of metrics.jsonl, as torchvision's.
LOSSES = {
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
    "loss_mask": "loss_mask",
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
}


class Detectron2Detector(Detector):
    """detectron2's `GeneralizedRCNN`; a cascade's stages are summed."""

    def forward(self, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        from detectron2.structures import BitMasks, Boxes, Instances
        from detectron2.utils.events import EventStorage

        inputs = []
        for image, target in zip(*batch, strict=True):
            instances = Instances((image.shape[-2], image.shape[-1]))
            instances.gt_boxes = Boxes(target.boxes)
            instances.gt_classes = target.labels - 1
            if target.masks is not None:
                instances.gt_masks = BitMasks(target.masks.bool())
            inputs.append({"image": image, "instances": instances})
        with EventStorage():  # detectron2's heads write statistics into one; nobody reads them here
            parts = self.model(inputs)
        losses: dict[str, Tensor] = {}
        for name, value in parts.items():
            known = LOSSES[name.split("_stage")[0]]
            losses[known] = losses.get(known, 0.0) + value
        return {"loss": sum(losses.values()), **losses}  # type: ignore[dict-item]

    def found_in(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        found = self.model.inference([{"image": image}], do_postprocess=False)[0]
        return found.pred_boxes.tensor, found.pred_classes, found.scores, found.get_fields().get("pred_masks")


def quiet_warnings() -> None:
    """Hides warnings of detectron2 and torch about each other: the user can do nothing about them."""
    for module in ("detectron2", "torch", "fvcore", "iopath"):
        warnings.filterwarnings("ignore", module=rf"{module}\b")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)


def build_detector(
    recipe: DetRecipe, num_classes: int, weights: str | Path | None = None, encoder_config: dict[str, Any] | None = None
) -> Detectron2Detector:
    """Returns the detector of a recipe; arguments and errors as of `engines.build_detector`."""
    quiet_warnings()
    from detectron2.config import instantiate

    file = None if weights is None else str(weights)
    return Detectron2Detector(instantiate(lazy_model(recipe, num_classes, file, encoder_config)), recipe.masks)
