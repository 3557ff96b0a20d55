"""The methods: which baselines can be tried here, and how their losses fall."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

METHODS = [
    "beit",
    pytest.param("dino", marks=pytest.mark.skipif(find_spec("lightly") is None, reason="lightly is not installed")),
]


def ten_losses(method: nn.Module, batch: dict[str, Tensor]) -> list[float]:
    """Returns the losses before each of ten steps of AdamW on one batch."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
