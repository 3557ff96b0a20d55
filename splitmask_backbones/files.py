"""Files that are whole or not there: written beside the target, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes `content` so that `path` holds either what it held before or all of it, also after a power cut."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
