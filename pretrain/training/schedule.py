"""Learning-rate schedules: pure functions from the step (0-based) to a factor on the peak lr, and what sets it."""

import math
from collections.abc import Sequence
from typing import Any


def warmup(step: int, warmup_steps: int) -> float:
    """Returns the linear warm-up factor `(step + 1) / warmup_steps`, at most 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, end_factor: float = 0.0) -> float:
    """Returns the factor of a linear warm-up and a cosine from 1 to `end_factor` over the rest (BEiT's schedule)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end_factor + (1.0 - end_factor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_step(step: int, milestones: Sequence[int], warmup_steps: int, gamma: float = 0.1) -> float:
    """Returns the factor of a linear warm-up, times `gamma` for every milestone (step) that has been reached."""
    return warmup(step, warmup_steps) * gamma ** sum(step >= milestone for milestone in milestones)


def warmup_poly(step: int, total_steps: int, warmup_steps: int, power: float = 1.0) -> float:
    """Returns the factor of a linear warm-up and a polynomial decay to 0 (`power` 1.0 in BEiT's UperNet protocol)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    return (1.0 - min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))) ** power


def set_lr(groups: Sequence[dict[str, Any]], factor: float) -> None:
    """Sets the lr of optimizer groups to `factor` of their `peak_lr`; a tensor is filled where it lies."""
    for group in groups:
        lr = group["peak_lr"] * factor
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Returns the value of a cosine from `start` to `end` (the weight decay of DINO)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))
