"""Work on each image of a list, in order, by processes where that is quicker than starting them takes."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from pretrain.training.cores import workers_alone
from pretrain.training.signals import end_with_parent, ignore_in_worker

R = TypeVar("R")

_CHUNK = 32
_TRY_SECONDS = 0.5  # this process measures for that long the time per image
_POOL_PAYS_SECONDS = 6.0  # starting processes takes seconds: they import what the main script imports


@contextlib.contextmanager
def results_of(look: Callable[[int], R], count: int, workers: int) -> Iterator[Iterator[R]]:
    """Within it, yields `look(0)`, ..., `look(count - 1)` in order.

    Args:
        look: can be pickled; what it raises ends the iteration.
        count: how many.
        workers: processes; 0 and 1 work in this one. The results are the same. One process of a run looks while the
            others wait, and has their workers too.
    """
    with contextlib.ExitStack() as stack:
        yield _results(look, count, workers_alone(workers), stack)


def _results(look: Callable[[int], R], count: int, workers: int, stack: contextlib.ExitStack) -> Iterator[R]:
    start = time.monotonic()
    done = 0
    for index in range(count):
        elapsed = time.monotonic() - start
        if workers > 1 and done and elapsed > _TRY_SECONDS:
            remaining = elapsed / done * (count - done)
            if remaining > _POOL_PAYS_SECONDS:
                break
        yield look(index)
        done += 1
    if done < count:
        # Spawned, not forked: the caller may hold torch's or faiss' threads, and a forked lock that nobody releases.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(look,))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        yield from pool.map(_look, range(done, count), chunksize=_CHUNK)


_of_worker: Callable[[int], Any] | None = None  # sent once to each worker, not with each image


def _look(index: int) -> Any:
    assert _of_worker is not None
    return _of_worker(index)


def _start_worker(look: Callable[[int], Any]) -> None:
    """Leaves signals to the parent, and ends with the parent even when that is killed."""
    global _of_worker
    _of_worker = look
    end_with_parent()
    ignore_in_worker()
