"""Images that are trained on and evaluated on: the same file in both splits, or a copy of it under another name."""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pretrain.data.sources import ImageList
from splitmask_backbones.files import sha256_of

TAIL = 4096
"""Bytes at a file's end that are compared first: at its beginning those of one camera are alike."""
logger = logging.getLogger(__name__)


def warn_about_copies(splits: Mapping[str, ImageList]) -> None:
    """Writes a `warning:` line where val images are training images as well, whatever they are called."""
    if not {"train", "val"} <= splits.keys():
        return
    shared = copies(splits["train"], splits["val"])
    if shared:
        val, train = next(iter(shared.items()))
        which = f"{val}" if val == train else f"{val} (a copy of {train})"
        logger.warning(
            "%d of %d val images are training images as well, %s for one: the results will be too high",
            len(shared),
            len(splits["val"]),
            which,
        )


def copies(train: ImageList, val: ImageList) -> dict[Path, Path]:
    """Returns the training image of each val image that is one: val file -> training file, in the order of val.

    Files count as one where path or bytes are the same. Of files of one size the ends are read, of those with one end
    all bytes.
    """
    by_path = {os.path.abspath(train.path(name)): train.path(name) for name in train.names}
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in by_path.values():
        by_size[_size(file)].append(file)
    by_content: dict[int, dict[bytes, list[Path]]] = {}  # size -> bytes at the end -> training files
    digest = cache(_digest)
    found: dict[Path, Path] = {}
    for name in val.names:
        file = val.path(name)
        same, size = by_path.get(os.path.abspath(file)), _size(file)
        if same is None and size > 0 and size in by_size:
            if size not in by_content:
                by_content[size] = defaultdict(list)
                for other in by_size[size]:
                    by_content[size][_tail(other)].append(other)
            alike = by_content[size].get(_tail(file), [])
            same = next((other for other in alike if digest(other) == digest(file) is not None), None)
        if same is not None:
            found[file] = same
    return found


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):  # listed, and not there: told elsewhere
        return -1


def _digest(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None


def _tail(file: Path) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
            return stream.read()
    except OSError:
        return b""
