"""Device, precision and processes: Lightning Fabric, set up the same way for every trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from splitmask_backbones.errors import check_choice

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
    import torch.distributed as dist

    together = dist.is_available() and dist.is_initialized()
    is_main = not together or dist.get_rank() == 0
    if together and not is_main:
        dist.barrier()
    yield is_main
    if together and is_main:
        dist.barrier()
