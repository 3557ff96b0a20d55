"""Files and folders that are whole or not there: written beside the target, flushed to disk, renamed. Free of torch."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What file systems without locks answer: some network and FUSE mounts."""


@contextmanager
def replaced_at_once(path: str | Path) -> Iterator[Path]:
    """Yields a path `.{name}.{pid}.tmp` beside `path` to write a file or a folder to; afterwards it takes its place.

    So `path` holds either what it held before or all that was written, also after a power cut: the content is flushed
    to disk before it is renamed. Any exception, KeyboardInterrupt included, removes the temporary and leaves `path`
    alone; only a killed process leaves the temporary behind. Folders cannot be exchanged in one step: a process killed
    between the two renames leaves the old one as `.{name}.{pid}.old`.

    Args:
        path: a file or folder; its parent has to exist.
    """
    path = Path(path)
    beside, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    _remove(beside)  # of a killed process with the same id: a folder would be mixed with it
    try:
        yield beside
        for written in [beside, *beside.rglob("*")]:
            _flush(written)
        if beside.is_dir() and path.is_dir():
            os.replace(path, old)
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = str(path)  # a write does not say what it writes to
        if old.exists() and not path.exists():
            os.replace(old, path)
        _remove(beside)
        raise
    _remove(old)
    _flush(path.parent)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes `content` by way of `replaced_at_once`."""
    with replaced_at_once(path) as beside:
        beside.write_bytes(content)


def load_object(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the JSON object that somebody else has written.

    Raises:
        ValueError: it cannot be read or is no object; ends with the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON ({error}): {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where an object is needed: {remedy}")
    return content


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise  # those mean that it cannot be asked for: network and FUSE file systems say so of folders
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
