"""Wall time of a call, also on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def timed(call: Callable[[], object], device: str) -> float:
    """Returns the seconds that `call()` takes, waiting for the device ("cpu" or "cuda") before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
