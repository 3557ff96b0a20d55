"""An exponential moving average of a model's weights: a second model that is evaluated and kept in its place."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class _Average(AveragedModel):
    """torch's, whose update asks the device for nothing: torch's own copies the count there first, and waits."""

    def __init__(self, model: nn.Module, decay: float, device: torch.device | None) -> None:
        super().__init__(model, device, use_buffers=True)
        self.decay = decay
        self.n_averaged = torch.zeros_like(self.n_averaged, device="cpu")

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes in the weights after a step."""
        count = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + count) / (10 + count))
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for old, new in zip(_tensors(self.module), _tensors(model), strict=True):
            olds, newest = by_type.setdefault(old.dtype, ([], []))
            olds.append(old)
            newest.append(new)
        for dtype, (olds, newest) in by_type.items():  # a few launches for all tensors
            if dtype.is_floating_point:
                torch._foreach_lerp_(olds, newest, weight)
            else:
                torch._foreach_copy_(olds, newest)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def averaged(model: nn.Module, decay: float, device: torch.device | None = None) -> AveragedModel:
    """Returns the average of all floating-point parameters and buffers over the steps; other buffers are the newest.

    `update_parameters(model)` takes in the weights after a step, `.module` is a model with the averaged ones.

    Args:
        model: its present weights are the start; on the average's device when it is taken in.
        decay: of the average, in [0, 1]; step n (from 1) uses `(1 + n) / (10 + n)` while that is less, so that the
            start is forgotten.
        device: where the average lies; the model's by default.
    """
    average = _Average(model, decay, device)
    start_at(average, 0)
    return average


def start_at(average: AveragedModel, step: int) -> None:
    """Lets the next `update_parameters` be that of step `step + 1`."""
    average.n_averaged.fill_(step + 1)
