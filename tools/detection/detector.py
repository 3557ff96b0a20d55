"""What detectors of every engine are to the training loop and the evaluation."""

from typing import Any

import torch
from torch import Tensor, nn

from splitmask_backbones.vit import VisionTransformer
from tools.detection.paste import scale_boxes, to_rles
from tools.detection.targets import Target


class Detector(nn.Module):
    """A batch in, named losses out.

    Attributes:
        model: the engine's own; images come in at their final size.
        metric_names: what the loop logs.
    """

    metric_names: tuple[str, ...] = (
        "loss",
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    )

    def __init__(self, model: nn.Module, with_masks: bool = True) -> None:
        super().__init__()
        self.model: Any = model
        if not with_masks:
            self.metric_names = tuple(name for name in self.metric_names if name != "loss_mask")

    @property
    def encoder(self) -> VisionTransformer:
        """The backbone's encoder."""
        return self.model.backbone.encoder

    def forward(self, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        """Returns "loss", the sum, and its parts, for uint8 images `(3, H, W)` and their targets."""
        raise NotImplementedError

    def found_in(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns boxes `(N, 4)`, labels from 0 `(N,)`, scores `(N,)` and masks `(N, 1, M, M)` of an uint8 image.

        Without a mask head, None in place of masks.
        """
        raise NotImplementedError

    @torch.inference_mode()
    def detect(self, image: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Returns what is found in one image, in pixels of the original image of `size` `(H, W)`.

        Args:
            image: uint8 `(3, h, w)`, as resized for evaluation.
            size: `(H, W)` of the original.

        Returns:
            boxes float `(N, 4)` x1, y1, x2, y2; labels int `(N,)` from 0; scores `(N,)`; masks: N RLEs, or None. NumPy.
        """
        boxes, labels, scores, masks = self.found_in(image)
        boxes = scale_boxes(boxes, (image.shape[-2], image.shape[-1]), size)
        # A box without width or height finds nothing (detectron2 drops it as well).
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return {
            "boxes": boxes[kept].double().numpy(),
            "labels": labels.cpu()[kept].numpy(),
            "scores": scores.double().cpu()[kept].numpy(),
            "masks": None if masks is None else to_rles(masks.float().cpu()[kept], boxes[kept], size),
        }
