"""Data workers: processes that make batches ahead, whose errors arrive as their own, and that never outlive a run."""

from __future__ import annotations

import atexit
import contextlib
import errno
import multiprocessing.queues
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert, get_worker_info

from pretrain.training.processes import processes
from pretrain.training.shortage import SHARED, free_shared_memory, shared_memory_remedy, shortage_of
from pretrain.training.signals import end_with_parent, ignore_in_worker
from splitmask_backbones.errors import UserError

_PATIENCE_SECONDS = 2.0
"""How long a worker may go on with the item that it makes when nobody wants it any more."""
_PLENTY = 2 << 30
"""Bytes of free shared memory for each worker above which it is not asked how much the batches need."""


_LOOKED_AT = 8
"""Items of which the largest stands for all: boxes of images differ in size."""


@dataclass(frozen=True)
class Failure:
    """An error that a worker hands over in place of a batch."""

    error: Exception

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Returns the error with its traceback as a note, which `--debug` shows; its sentence is left alone."""
        try:
            error = pickle.loads(pickle.dumps(error))
        except Exception:  # its class takes other arguments than it keeps, or lies where nobody else finds it
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"in a data worker:\n{traceback.format_exc()}")
        return cls(error)


class _Assembled(Dataset[Any]):
    """A data set asked for whole batches: by a list of keys, or by one key for a single item."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __getitem__(self, key: Any) -> Any:
        if get_worker_info() is None:
            return self._make(key)
        try:
            return self._make(key)
        except Exception as error:
            return Failure.of(error)

    def _make(self, key: Any) -> Any:
        if isinstance(key, list):
            return self.collate_fn([self.dataset[one] for one in key])
        return default_convert(self.dataset[key])


def _as_it_is(batch: Any) -> Any:
    return batch


class Batches(Iterator[Any]):
    """Iterator over the batches of a data set, made by `workers` processes, or here where there are none.

    Whatever a worker raises is raised here, the same exception with the same sentence. At its end, and before any error
    leaves it, the workers are gone; who leaves earlier calls `close`.

    Args:
        dataset: asked for by key.
        keys: a list of keys for each batch, or a single key for each item; has a length, can be iterated again.
        workers: data processes.
        collate_fn: from a list of items to a batch; module-level, for workers that are not forked. None: torch's own.
        pin_memory: for a GPU, which copies from such memory while the CPU goes on.
        prefetch: batches that each worker makes ahead, at most: fewer where shared memory is small.

    Raises:
        ValueError: shared memory has no room for one batch a worker; later, whatever was short on the machine.
    """

    def __init__(
        self,
        dataset: Any,
        keys: Any,
        workers: int,
        *,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        prefetch: int = 2,
    ) -> None:
        self._iterator: Any = None
        self._pid = os.getpid()
        assembled = _Assembled(dataset, collate_fn or default_collate)
        loader: DataLoader[Any] = DataLoader(
            assembled,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=start_worker if workers else None,
            prefetch_factor=_fitting(assembled, keys, workers, prefetch) if workers else None,
        )
        self._length = len(loader)
        try:
            # Here and not with the first batch: torch draws a seed for the workers, and draws are part of the result.
            self._iterator = iter(loader)
        except OSError as error:
            if workers and error.errno == errno.ENOSPC and not error.filename:  # a semaphore, which lies there too
                error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), SHARED)
            _raise_shortage(error)
            raise
        if workers:
            _open.add(self)

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            self.close()
            _raise_shortage(error)
            raise
        if isinstance(batch, Failure):
            self.close()
            _raise_shortage(batch.error)
            raise batch.error
        return batch

    def close(self) -> None:
        """Ends the workers: by their own will, or after two seconds by force. May be called again."""
        iterator, self._iterator = self._iterator, None
        workers = getattr(iterator, "_workers", [])
        if not workers or os.getpid() != self._pid:
            return
        timer = threading.Timer(_PATIENCE_SECONDS, _kill, [workers])
        timer.daemon = True
        timer.start()
        with contextlib.suppress(RuntimeError):  # torch's own notice that workers were killed
            iterator._shutdown_workers()
        timer.cancel()
        with contextlib.suppress(RuntimeError):
            _kill(workers)
            for worker in workers:
                worker.join(_PATIENCE_SECONDS)
        _open.discard(self)


_open: weakref.WeakSet[Batches] = weakref.WeakSet()


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


@atexit.register
def _kill_all() -> None:
    """Ends the workers of iterators that nobody has closed, such as those that the frames of a traceback hold.

    Runs before multiprocessing's own handler, which would wait for them: they ignore the signal that it sends.
    """
    left = [batches for batches in _open if batches._iterator is not None and batches._pid == os.getpid()]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for batches in left:
        _kill(batches._iterator._workers)


def start_worker(worker: int) -> None:
    """Prepares a data worker: it ends with the main process, leaves signals to it, and has one thread."""
    end_with_parent()
    ignore_in_worker()
    torch.set_num_threads(1)
    multiprocessing.queues.Queue._on_queue_feeder_error = _hand_over_failure  # type: ignore[attr-defined]


def _hand_over_failure(queue: Any, error: Exception, item: Any) -> None:
    """Puts what kept a batch from being handed over in its place: by default nothing comes, and main waits for ever."""
    queue.put((item[0], Failure.of(error)))


def _raise_shortage(error: Exception) -> None:
    """Raises what a user can do where the machine was short of something."""
    if not isinstance(error, UserError) and (short := shortage_of(error)) is not None:
        raise UserError(short) from error


def _fitting(assembled: _Assembled, keys: Any, workers: int, prefetch: int) -> int:
    """Returns how many batches each worker may make ahead, at most `prefetch`, so that shared memory holds them all."""
    free = free_shared_memory()
    first = next(iter(keys), None)
    if free is None or free > workers * _PLENTY or first is None:
        return prefetch
    count, some = (len(first), first[:_LOOKED_AT]) if isinstance(first, list) else (1, [first])
    size = count * max(len(pickle.dumps(assembled.dataset[key])) for key in some)
    return prefetch_that_fits(size, workers, prefetch)


def prefetch_that_fits(batch_bytes: int, workers: int, prefetch: int = 1) -> int:
    """Returns how many batches each worker may make ahead, at most `prefetch`, so that shared memory holds them all.

    Raises:
        ValueError: there is no room for one.
    """
    free = free_shared_memory()
    if free is None or not workers:
        return prefetch
    room = free // processes().local_world_size - 2 * batch_bytes  # one is in use, one on its way
    if room < workers * batch_bytes:
        raise UserError(
            f"{SHARED} (shared memory) has {free / 1e6:.1f} MB free, and {workers} data workers hand over batches of "
            f"{batch_bytes / 1e6:.1f} MB in it: {shared_memory_remedy()}"
        )
    return min(prefetch, room // (workers * batch_bytes))
