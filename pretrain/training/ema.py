"""An exponential moving average of a model's weights, evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The average of all floating-point parameters and buffers over the updates; other buffers are the newest.

    Args:
        model: its present weights are the start.
        decay: of the average, in [0, 1]; the first updates use less, `(1 + n) / (10 + n)`, so that the start is
            forgotten.

    Attributes:
        tensors: the average by the names of the model's state.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after update `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average = self.tensors[name].to(value.device)
            self.tensors[name] = average.lerp_(value, 1 - decay) if average.is_floating_point() else value.clone()

    def copy_to(self, model: nn.Module) -> None:
        """Puts the average into the model for good."""
        model.load_state_dict(self.tensors, strict=True)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within it, the model has the averaged weights; afterwards its own again."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=True)
