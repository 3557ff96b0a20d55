"""An exponential moving average of a model's weights: a second model that is evaluated and kept in its place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float, device: torch.device | None = None) -> AveragedModel:
    """Returns the average of all floating-point parameters and buffers over the steps; other buffers are the newest.

    `update_parameters(model)` takes in the weights after a step, `.module` is a model with the averaged ones.

    Args:
        model: its present weights are the start.
        decay: of the average, in [0, 1]; step n (from 1) uses `(1 + n) / (10 + n)` while that is less, so that the
            start is forgotten.
        device: where the average lies; the model's by default.
    """

    @torch.no_grad()
    def blend(olds: Sequence[Tensor], newest: Sequence[Tensor], num: Tensor | int) -> None:
        count = int(average.n_averaged)  # `num` is its copy on the device, which the host would have to wait for
        weight = 1 - min(decay, (1 + count) / (10 + count))
        if olds[0].is_floating_point():  # all are of one type
            torch._foreach_lerp_(list(olds), list(newest), weight)  # a few launches for all of them
        else:
            torch._foreach_copy_(list(olds), list(newest))

    average = AveragedModel(model, device, multi_avg_fn=blend, use_buffers=True)
    average.n_averaged = torch.zeros_like(average.n_averaged, device="cpu")
    start_at(average, 0)
    return average


def start_at(average: AveragedModel, step: int) -> None:
    """Lets the next `update_parameters` be that of step `step + 1`; at 0 torch would copy instead of averaging."""
    average.n_averaged.fill_(step + 1)
