"""What a call adds to the memory that is in use, at its peak."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def peak_of(call: Callable[[], object], device: str) -> int | None:
    """Returns the bytes by which a call's peak exceeds what was in use before; None where the system does not tell.

    Args:
        call: is made once.
        device: "cuda" for the card's memory, "cpu" for this process's.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: starts the high-water mark anew
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        call()
        return None


def free_memory(device: str) -> None:
    """Gives memory that nothing uses any more back, for another process or another way of doing the same."""
    gc.collect()  # a model in a cycle of references keeps its weights
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        with suppress(AttributeError, OSError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """Returns an entry of Linux's /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
