"""A classifier as a graph."""

from typing import Any

from torch import Tensor, nn

from tools.classification.model import Classifier
from tools.finetuning.graph import Graph


class Scores(nn.Module):
    """Images `(B, 3, S, S)` to scores `(B, K)` that add up to 1."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        normalize = self.model.normalize
        return (self.model.logits((images - normalize.mean) / normalize.std).softmax(dim=1),)


def graph_of(model: Classifier) -> Graph:
    """Returns the graph of a classifier."""
    return Graph(Scores(model).eval(), ("scores",), any_batch=True)
