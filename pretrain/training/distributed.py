"""Device, precision and processes: Lightning Fabric, set up the same way for every trainer, and what ranks agree on."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from splitmask_backbones.errors import UserError, check_choice

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(precision: str = "32") -> Fabric:
    """Returns a launched Fabric: one process, or all of torchrun's with DDP (gloo on CPUs).

    Args:
        precision: "32" or "bf16" (mixed: weights and optimizer stay in float32).
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    check_choice("precision", precision, PRECISIONS)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=world_size // local,
        # The first process alone checks the images and makes the words while the others wait.
        strategy=DDPStrategy(timeout=timedelta(hours=12)) if world_size > 1 else "auto",
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Runs the block in the main process, then in the others, which find what it has written; yields whether main."""
    together = dist.is_available() and dist.is_initialized()
    is_main = not together or dist.get_rank() == 0
    if together and not is_main:
        dist.barrier()
    yield is_main
    if together and is_main:
        dist.barrier()


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
