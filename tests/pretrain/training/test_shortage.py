"""What the machine was short of is told from the error, and the remedy fits it."""

from __future__ import annotations

import errno
import re

import pytest

from pretrain.training import shortage
from pretrain.training.shortage import free_shared_memory, shortage_of
from tools import cli


@pytest.mark.parametrize(
    ("error", "match"),
    [
        # torch's words for a full /dev/shm, where a disk has nothing to do with it
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
            "shared memory, /dev/shm .*docker run --shm-size.*--workers",
        ),
        (RuntimeError("unable to write to file </torch_17_9_0>: No space left on device (28)"), "shared memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."),
            "shared memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"), "shared memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: the disk is full"),
        (RuntimeError("PytorchStreamWriter: No space left on device"), "the disk is full"),
        (OSError(errno.EMFILE, "Too many open files", "/data/a.png"), "/data/a.png: too many open files .*ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (MemoryError(), "out of memory: use a smaller --batch-size or --img-size, or fewer --workers"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory.*--workers"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"), "out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            r"out of memory: use a smaller --batch-size or --img-size \(CUDA",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a data worker was killed from outside.*--workers",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "a data worker ended without a word.*--workers 0",
        ),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "no more processes.*ulimit -u.*--workers"),
    ],
)
def test_the_remedy_fits_what_was_short(error: Exception, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.match(match, shortage_of(error) or ""), shortage_of(error)
    cli.print_error(error, debug=False)
    assert capsys.readouterr().err == f"error: {shortage_of(error)}\n"


@pytest.mark.parametrize("error", [ValueError("a disk"), KeyError("x"), OSError(errno.ENOENT, "gone", "/dev/sh")])
def test_other_errors_are_no_shortage(error: Exception) -> None:
    assert shortage_of(error) is None


def test_free_shared_memory_is_that_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    free = free_shared_memory()
    assert free is None or free >= 0
    monkeypatch.setattr(shortage, "SHARED", str(tmp_path / "missing"))
    assert free_shared_memory() is None
