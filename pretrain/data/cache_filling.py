"""Fills a cache of decoded images: what is there is used, what is missing or has changed is decoded again.

A cache may be filled by several runs one after the other, be killed at any time, or be deleted. See `cache`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.cache import (
    CHANGED,
    INDEX,
    MISSING,
    PIXELS,
    READY,
    RECORD,
    WRITTEN,
    bytes_of,
    cache_folder,
    read_index,
)
from pretrain.data.cache_lock import ELSEWHERE, CacheError, locked, refusals_told
from pretrain.data.decode import UnreadableImage, too_large
from pretrain.data.pixel_limit import apply_pixel_limit
from pretrain.data.pool import results_of
from pretrain.data.sources import ImageList
from pretrain.training.options import AUTO
from pretrain.training.progress import tracked
from splitmask_backbones.files import replaced_at_once

_SPARE = 1 << 30
"""Bytes of the disk that a cache leaves free."""
_SYNC_BYTES = 1 << 28
"""Bytes that a process writes before it waits for the disk: what a kill costs at most."""
_flush = getattr(os, "fdatasync", os.fsync)
"""Writes a file's content to the disk; macOS has no `fdatasync`."""


class Filler:
    """The files of a cache that is filled, opened by each process that decodes on its own.

    Args:
        folder: that holds them.
        names: of the list, in its order.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self._rows = {name: row for row, name in enumerate(names)}
        self._opened: tuple[np.memmap[Any, Any], int] | None = None
        self._num_unsynced, self._end_before = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _files(self) -> tuple[np.memmap[Any, Any], int]:
        """Returns the records, and a descriptor of the pixels."""
        if self._opened is None:
            index: Any = np.lib.format.open_memmap(self.folder / INDEX, mode="r+")
            self._opened = index, os.open(self.folder / PIXELS, os.O_RDWR | os.O_CREAT, 0o666)
        return self._opened

    def close(self) -> None:
        """Closes the files, which are opened again where they are needed."""
        if self._opened is not None:
            os.close(self._opened[1])
            self._opened = None

    def sides(self, name: str) -> tuple[int, int] | None:
        """Returns `(H, W)` of an image, None where it is not there."""
        record = self._files()[0][self._rows[name]]
        return (int(record["height"]), int(record["width"])) if record["ready"] == READY else None

    def write(self, name: str, image: Image.Image) -> None:
        """Stores an image in the place that `reserve` gave it; one of other sides than its header's is left out.

        Raises:
            CacheError: as by a full disk.
        """
        index, pixels = self._files()
        row = self._rows[name]
        if image.size != (index["width"][row], index["height"][row]):
            return
        content = image.tobytes()
        offset, rest = int(index["offset"][row]), memoryview(content)
        while rest:  # Linux writes 2 GB at a time
            with refusals_told(self.folder):
                written = os.pwrite(pixels, rest, offset)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset, rest = offset + written, rest[written:]
        index["ready"][row] = WRITTEN  # last: a kill before it leaves the image to the next run
        self._num_unsynced += len(content)
        if self._num_unsynced >= _SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Makes all images ready that any process has written, once they are on the disk."""
        index, pixels = self._files()
        written = np.flatnonzero(index["ready"] == WRITTEN)
        self._num_unsynced = 0
        if len(written):
            with refusals_told(self.folder):
                _flush(pixels)
            index["ready"][written] = READY

    def give_back(self) -> None:
        """Frees the room of what was written behind the images that were there before."""
        index, pixels = self._files()
        index["ready"][index["offset"] >= self._end_before] = MISSING
        index.flush()
        os.ftruncate(pixels, min(self._end_before, os.fstat(pixels).st_size))

    def _others(self) -> str:
        """Returns what is said of the caches of other lists beside this one, which nobody may need any more."""
        found = [path.stat().st_blocks * 512 for path in self.folder.parent.glob(f"*/{PIXELS}")]
        own = (self.folder / PIXELS).stat().st_blocks * 512
        if len(found) < 2:
            return ""
        return f" ({(sum(found) - own) / 1e9:.1f} GB are in caches of other lists beside it, which may be deleted)"

    def forget_changed(self, stamps: np.ndarray) -> bool:
        """Marks the images that have changed; returns whether they, and those before them, are most of the bytes.

        Args:
            stamps: of `_stamps`.
        """
        index = self._files()[0]
        ends = index["offset"] + bytes_of(index)
        # What lay behind the end of a file that was cut would come back as holes with the next write.
        inside = ends <= (self.folder / PIXELS).stat().st_size
        same = (index["size"] == stamps[:, 0]) & (index["time"] == stamps[:, 1])
        was_there = (index["ready"] == READY) | (index["ready"] == CHANGED)
        fresh = (index["ready"] == READY) & inside & same
        index["ready"] = np.where(fresh, READY, np.where(was_there, CHANGED, MISSING))
        index.flush()  # a power cut must not leave a new place with the state of the old one
        used = int(bytes_of(index)[index["ready"] != CHANGED].sum())
        return int(ends.max(initial=0)) - used > used

    def reserve(self, images: ImageList, stamps: np.ndarray, workers: int) -> None:
        """Gives a place to each image that is missing, and a new one to those that `forget_changed` has marked.

        Raises:
            CacheError: the disk has no room for them.
        """
        index = self._files()[0]
        stale = np.flatnonzero(index["ready"] != READY)
        wanted = ImageList(images.root, [images.names[row] for row in stale])
        with results_of(_Size(wanted), len(wanted), workers) as sizes:
            sides = np.array(list(tracked(sizes, len(wanted), "sizes of images")), np.int64).reshape(-1, 2)
        has_place = (index["height"][stale] == sides[:, 0]) & (index["width"][stale] == sides[:, 1])
        has_place &= index["ready"][stale] != CHANGED
        end = int((index["offset"] + bytes_of(index)).max(initial=0))
        needed = 3 * (sides[:, 0] * sides[:, 1])[~has_place]
        written = (self.folder / PIXELS).stat().st_blocks * 512
        room = shutil.disk_usage(self.folder).free - _SPARE
        missing = end + int(needed.sum()) - written
        if missing > max(room, 0):
            raise CacheError(
                f"the cache in {self.folder} needs {missing / 1e9:.1f} GB more, and {max(room, 0) / 1e9:.1f} GB can be "
                f"used there{self._others()}: {ELSEWHERE}"
            )
        self._end_before = end
        offsets = index["offset"][stale]
        offsets[~has_place] = end + np.concatenate([[0], np.cumsum(needed)[:-1]]) if len(needed) else 0
        index["offset"][stale] = offsets
        for name, column in (("height", 0), ("width", 1)):  # behind the offset: sides alone would count as a place
            index[name][stale] = sides[:, column]
        index["size"][stale], index["time"][stale] = stamps[stale, 0], stamps[stale, 1]
        index["ready"][stale] = MISSING  # last: until here the old place of a changed image is not to be written to
        index.flush()


@dataclass(frozen=True)
class FillingImages(ImageList):
    """A list of images of which `check` puts those that are missing into a cache.

    Attributes:
        filler: of this list, or of a longer one.
    """

    filler: Filler | None = None

    def check(self, index: int) -> None:
        assert self.filler is not None
        name = self.names[index]
        sides = self.filler.sides(name)
        limit = apply_pixel_limit()
        if sides is not None and limit is not None and sides[0] * sides[1] > limit:  # of another --max-pixels
            raise UnreadableImage(too_large(sides[0] * sides[1]))
        if sides is None:
            self.filler.write(name, self.decode(index))


@dataclass(frozen=True)
class _Size:
    """Returns `(H, W)` of an image by its header, zeros where it cannot be read."""

    images: ImageList

    def __call__(self, index: int) -> tuple[int, int]:
        try:
            return self.images.size(index)
        except (OSError, ValueError, SyntaxError, UnreadableImage):  # `check` says what is wrong
            return 0, 0


def _stamps(images: ImageList) -> np.ndarray:
    """Returns size and time of change (ns) of the files, int64 `(N, 2)`."""
    return np.array([_stamp(images.path(name)) for name in images.names], np.int64).reshape(-1, 2)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _begin_anew(folder: Path, count: int) -> None:
    """Makes empty files; runs that have the old ones open go on with them."""
    # In this order an index is never beside pixels that are not its own.
    for name in (INDEX, PIXELS):
        (folder / name).unlink(missing_ok=True)
    (folder / PIXELS).touch()
    with replaced_at_once(folder / INDEX) as empty, open(empty, "wb") as file:
        np.save(file, np.zeros(count, RECORD))


@contextlib.contextmanager
def filling(images: ImageList, place: str, workers: int) -> Iterator[FillingImages]:
    """Yields a list whose `check` fills the cache; other processes that want to fill it wait until the block ends.

    Args:
        images: the whole list.
        place: of `--cache`. With AUTO, a filling that fails leaves no more on the disk than there was.
        workers: processes that read headers.

    Raises:
        CacheError: the disk has no room, or the folder cannot be written or locked.
    """
    folder = cache_folder(images, place)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(folder))
        stamps = _stamps(images)
        with refusals_told(folder):
            if read_index(folder, len(images)) is None:
                _begin_anew(folder, len(images))
            filler = stack.enter_context(contextlib.closing(Filler(folder, images.names)))
            if filler.forget_changed(stamps):
                filler.close()
                _begin_anew(folder, len(images))
        filler.reserve(images, stamps, workers)
        try:
            yield FillingImages(images.root, images.names, images.kind, images.notes, images.value_range, filler)
            filler.sync()
        except BaseException as error:
            if isinstance(error, CacheError) and place == AUTO:
                filler.give_back()
            else:
                with contextlib.suppress(CacheError):
                    filler.sync()
            raise
