"""What a machine ran short of, and the remedy that fits it: shared memory, open files, processes, memory, disk.

Free of torch, whose errors are told by their text: it says "No space left on device" of shared memory as of a disk.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from pathlib import Path

SHARED = "/dev/shm"
"""Where data workers put what they hand over; a container gives it 64 MB unless told otherwise."""

_SHARED_TEXT = re.compile(r"/dev/shm|shared memory|shm_open|</?torch_\d+|Bus error|SemLock")
_FILES_TEXT = re.compile(r"Too many open files|received \d+ items of ancdata|unable to open file descriptor")
_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|_ALLOC_FAILED", re.IGNORECASE
)
_PROCESSES_TEXT = re.compile(r"can't start new thread|Resource temporarily unavailable")
_DISK_TEXT = re.compile(r"No space left on device")


def free_shared_memory() -> int | None:
    """Returns the bytes that are free in shared memory; None where the system has no such folder."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return None


def free_disk(folder: Path) -> int:
    """Returns the bytes that are free where a folder is or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def shared_memory_remedy() -> str:
    """Returns what helps where shared memory is too small."""
    return (
        "give it more (docker run --shm-size=8g or --ipc=host; mount -o remount,size=8G /dev/shm), "
        "or use fewer --workers, or --workers 0, which needs none"
    )


def shortage_of(error: BaseException) -> str | None:
    """Returns what was short and the remedy, in one line without a full stop; None for any other error."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    place = os.fspath(error.filename) if isinstance(error, OSError) and isinstance(error.filename, str) else ""
    if _SHARED_TEXT.search(text) or place.startswith(SHARED):
        free = free_shared_memory()
        shown = "" if free is None else f" ({free / 1e6:.1f} MB are free now)"
        return f"shared memory, {SHARED}{shown}, is too small for the data workers: {shared_memory_remedy()}"
    where = f"{place}: " if place else ""
    if number in (errno.EMFILE, errno.ENFILE) or _FILES_TEXT.search(text):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{where}too many open files (limit {limit}): raise it with ulimit -n 65536, or use fewer --workers"
    if re.search(r"worker .*killed by signal: (Killed|9)|process pool was terminated abruptly", text):
        return (
            "a data worker was killed from outside, most likely because memory ran out: "
            "use fewer --workers or a smaller --batch-size, then --resume"
        )
    if re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", text):
        return f"a data worker ended without a word ({' '.join(text.split())[:200]}): --workers 0 shows why"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY_TEXT.search(text):
        if re.search(r"CU(DA|BLAS|DNN|SOLVER)|HIP|GPU", text):
            return f"out of memory: use a smaller --batch-size or --img-size ({' '.join(text.split())[:200]})"
        return f"{where}out of memory: use a smaller --batch-size or --img-size, or fewer --workers"
    if number == errno.EAGAIN or isinstance(error, RuntimeError) and _PROCESSES_TEXT.search(text):
        return "no more processes or threads are allowed here (ulimit -u): use fewer --workers, or raise the limit"
    if number == errno.ENOSPC or _DISK_TEXT.search(text):
        return f"{where}the disk is full: free some room or choose another --output, then --resume"
    return None
