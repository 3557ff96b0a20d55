"""Who may fill a cache of decoded images, one process after the other, and what is said where none can."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import NO_LOCKS

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = "name another folder (--cache DIR), or use --cache off"


class CacheError(UserError):
    """A cache cannot be filled; the images can be read without it."""


@contextlib.contextmanager
def refusals_told(folder: Path) -> Iterator[None]:
    """Raises CacheError where the system refuses what the block asks for."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_LOCKS:
            why, remedy = f"its file system has no locks ({error.strerror})", ELSEWHERE
        else:
            why, remedy = str(error), f"free some room, {ELSEWHERE}" if error.errno in _FULL else ELSEWHERE
        raise CacheError(f"the cache in {folder} cannot be filled: {why}: {remedy}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder, and lets one process after the other into the block.

    Raises:
        CacheError: the folder cannot be written, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        with refusals_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a+", encoding="utf-8"))
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                logger.info("another process fills the cache %s: waiting for it", folder)
                fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
