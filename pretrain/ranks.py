"""What the processes of one run have to agree on: when to stop, and what to log."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from splitmask_backbones.errors import UserError


def is_together() -> bool:
    """Returns whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agree(loss: Tensor, grad_norm: Tensor, received: int | None, step: int) -> int:
    """Returns the signal that any process received, or 0; to be called by all of them for each update.

    Args:
        loss: 0-dim, this process's.
        grad_norm: 0-dim.
        received: signal number of this process.
        step: the update, from 0.

    Raises:
        ValueError: in all processes, where any has a loss or gradient that is not finite.
    """
    finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    state = torch.stack([(~finite).float(), torch.tensor(float(received or 0), device=loss.device)])
    if is_together():
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
    bad, signal = state.tolist()
    if bad:
        raise UserError(
            f"the loss is not finite at step {step + 1} (loss {float(loss)}, gradient norm {float(grad_norm)}): "
            "the last checkpoint is kept; use a lower --lr, a longer warm-up or --precision 32"
        )
    return int(signal)


def mean_over_ranks(values: Sequence[Tensor]) -> list[float]:
    """Returns the means of 0-dim tensors over the processes."""
    if not values:
        return []
    stacked = torch.stack([value.detach() for value in values])
    if is_together():
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return [float(value) for value in stacked]
