"""A detector of torchvision's as a graph."""

from typing import Any

from torch import Tensor, nn

from tools.finetuning.graph import Graph


class Found(nn.Module):
    """Image `(1, 3, H, W)` to boxes `(N, 4)`, labels from 0, scores, and masks `(N, M, M)` where there are some."""

    def __init__(self, model: nn.Module, with_masks: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.with_masks = with_masks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model([images[0]])[0]
        masks = (found["masks"][:, 0],) if self.with_masks else ()
        return found["boxes"], found["labels"] - 1, found["scores"], *masks


def graph_of(model: nn.Module, with_masks: bool) -> Graph:
    """Returns the graph of torchvision's Mask R-CNN, or of its Faster R-CNN."""
    names = ("boxes", "labels", "scores", "masks") if with_masks else ("boxes", "labels", "scores")
    return Graph(Found(model, with_masks).eval(), names, varies=True)
