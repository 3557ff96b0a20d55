"""Images before a run starts: every file of a list is decoded once, and too many unreadable ones stop the run."""

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.decode import UnreadableImage
from pretrain.data.sources import ImageList, printable
from pretrain.training.progress import tracked
from pretrain.training.signals import ignore_in_worker
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically

logger = logging.getLogger(__name__)

MAX_NAMED = 20
"""Unreadable images named on the screen; the report file names all."""


@dataclass(frozen=True)
class BadImage:
    """An unreadable image: its name in the list and the reason."""

    name: str
    reason: str


def check_images(images: ImageList, workers: int = 0) -> list[BadImage]:
    """Returns the unreadable ones, in the order of the list; decodes every image to its end.

    Args:
        images: what is checked.
        workers: processes that decode; 0 and 1 decode in this one. The result is the same. Shows progress with the
            time left.
    """
    bad = []
    with contextlib.ExitStack() as stack:
        reasons = _reasons(images, workers, stack)
        for name, reason in zip(images.names, tracked(reasons, len(images), "checking images"), strict=True):
            if reason is not None:
                bad.append(BadImage(name, reason))
    return bad


_CHUNK = 32
_TRY_SECONDS = 0.5  # this process measures for that long the time per image
_POOL_PAYS_SECONDS = 6.0  # starting processes takes seconds: they import what the main script imports


def _reasons(images: ImageList, workers: int, stack: contextlib.ExitStack) -> Iterator[str | None]:
    start = time.monotonic()
    done = 0
    for index in range(len(images)):
        elapsed = time.monotonic() - start
        if workers > 1 and done and elapsed > _TRY_SECONDS:
            remaining = elapsed / done * (len(images) - done)
            if remaining > _POOL_PAYS_SECONDS:
                break
        yield _reason(index, images)
        done += 1
    if done < len(images):
        # Spawned, not forked: the caller may hold torch's or faiss' threads, and a forked lock that nobody releases.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(images,))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        yield from pool.map(_reason, range(done, len(images)), chunksize=_CHUNK)


_of_worker: ImageList | None = None  # sent once to each worker, not with each image


def _reason(index: int, images: ImageList | None = None) -> str | None:
    images = images or _of_worker
    assert images is not None
    try:
        images.decode(index)
    except UnreadableImage as error:
        return str(error)
    return None


def _start_worker(images: ImageList) -> None:
    """Leaves signals to the parent, and ends with the parent even when that is killed."""
    global _of_worker
    _of_worker = images
    ignore_in_worker()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def enforce_bad_limit(
    num_files: int,
    bad: Sequence[BadImage],
    max_fraction: float,
    report_path: str | Path,
    root: str | os.PathLike[str] | None = None,
) -> None:
    """Reports unreadable images and stops the run when there are too many; does nothing when there is none.

    Writes all of them to ``report_path`` (``path<TAB>reason`` per line; tabs, line ends, backslashes and bytes that are
    not UTF-8 in a path are written as in ``a\\tb``, ``\\xff``) and logs one warning for each of the first 20.

    Args:
        num_files: all files found, the unreadable ones included.
        bad: from ``check_images``.
        max_fraction: share of ``num_files`` in [0, 1] that may be unreadable (``--max-bad-fraction``).
        report_path: file to write, ``bad_images.txt`` in the run's folder.
        root: put before the names, so that the report holds whole paths.

    Raises:
        UserError: more than ``max_fraction * num_files`` are unreadable, or none is left.
    """
    if not bad:
        return
    shown = [printable(item.name if root is None else os.path.join(root, item.name)) for item in bad]
    write_atomically(
        report_path, "".join(f"{path}\t{item.reason}\n" for path, item in zip(shown, bad, strict=True)).encode()
    )
    for path, item in zip(shown[:MAX_NAMED], bad, strict=False):
        logger.warning("unreadable image %s: %s", path, item.reason)
    if len(bad) > MAX_NAMED:
        logger.warning("%d more unreadable images, listed in %s", len(bad) - MAX_NAMED, report_path)
    first = f"the first is {shown[0]}: {bad[0].reason}; all are listed in {report_path}"
    if len(bad) >= num_files:
        raise UserError(f"none of the {num_files} images can be read; {first}; repair them or choose other images")
    # A tolerance of rounding only: 0.07 * 100 is 7.000000000000001.
    if len(bad) > max_fraction * num_files + 1e-9:
        share = 100 * len(bad) / num_files
        raise UserError(
            f"{len(bad)} of {num_files} images ({share:.3g} %) cannot be read, more than the limit of "
            f"{100 * max_fraction:.3g} %; {first}; repair or remove them, or raise --max-bad-fraction"
        )
