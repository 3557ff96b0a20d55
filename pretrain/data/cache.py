"""Decoded images on disk: each is decoded once, and then read as the bytes that decoding gave.

A cache is a folder with two files: `pixels.u8`, the uint8 `(H, W, 3)` of all images one behind the other, and
`index.npy`, a record for each image. All runs and processes that read the same list share it. What is there is used,
what is missing or has changed is decoded again: a cache may be filled by several runs one after the other, be killed at
any time, or be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from pretrain.data.decode import UnreadableImage, too_large
from pretrain.data.pixel_limit import apply_pixel_limit
from pretrain.data.pool import results_of
from pretrain.data.sources import ImageList
from pretrain.training.options import AUTO
from pretrain.training.progress import tracked
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import replaced_at_once

logger = logging.getLogger(__name__)

_RECORD = np.dtype(
    [("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("size", "<i8"), ("time", "<i8"), ("ready", "u1")]
)
"""Where an image lies and its sides; size and time of change (ns) of the file that was decoded."""
_TIFFS = b"white is zero, no data black"
"""Since when deep TIFFs whose zero is white are turned like this: what was decoded before is another picture."""
_SPARE = 1 << 30
"""Bytes of the disk that a cache leaves free."""


class PixelCache:
    """The files of one list of images, opened by each process on its own.

    Args:
        folder: that holds them.
        names: of the list, in its order.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self._rows = {name: row for row, name in enumerate(names)}
        self._opened: tuple[np.memmap[Any, Any], int] | None = None
        self._mapped: np.memmap[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_mapped": None}

    def _files(self) -> tuple[np.memmap[Any, Any], int]:
        """Returns the records, and a descriptor of the pixels."""
        if self._opened is None:
            index: Any = np.lib.format.open_memmap(self.folder / "index.npy", mode="r+")
            self._opened = index, os.open(self.folder / "pixels.u8", os.O_RDWR | os.O_CREAT, 0o666)
        return self._opened

    def read(self, name: str) -> Image.Image | None:
        """Returns an image, None where it is not there yet."""
        index, pixels = self._files()
        record = index[self._rows[name]]
        if not record["ready"]:
            return None
        shape = int(record["height"]), int(record["width"]), 3
        data = os.pread(pixels, shape[0] * shape[1] * 3, int(record["offset"]))
        if len(data) < shape[0] * shape[1] * 3:  # the file was cut by other hands
            return None
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))

    def has(self, name: str) -> bool:
        """Returns whether an image is there."""
        return bool(self._files()[0][self._rows[name]]["ready"])

    def place(self, name: str) -> tuple[int, int, int] | None:
        """Returns the first byte, height and width of an image, None where it is not there."""
        record = self._files()[0][self._rows[name]]
        if not record["ready"]:
            return None
        return int(record["offset"]), int(record["height"]), int(record["width"])

    def pixels(self) -> np.memmap[Any, np.dtype[np.uint8]]:
        """Returns the bytes of all images, mapped into memory: changes stay with this process."""
        if self._mapped is None:
            self._mapped = np.memmap(self.folder / "pixels.u8", np.uint8, mode="c")
        return self._mapped

    def write(self, name: str, image: Image.Image) -> None:
        """Stores an image in the place that `reserve` gave it; one of other sides than its header's is left out."""
        index, pixels = self._files()
        row = self._rows[name]
        if image.size != (index[row]["width"], index[row]["height"]):
            return
        content = image.tobytes()
        offset, rest = int(index[row]["offset"]), memoryview(content)
        while rest:  # Linux writes 2 GB at a time
            written = os.pwrite(pixels, rest, offset)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "pixels.u8"))
            offset, rest = offset + written, rest[written:]
        index[row]["ready"] = 1  # last: a kill before it leaves the image to the next run

    def _others(self) -> str:
        """Returns what is said of the caches of other lists beside this one, which nobody may need any more."""
        found = [path.stat().st_blocks * 512 for path in self.folder.parent.glob("*/pixels.u8")]
        own = (self.folder / "pixels.u8").stat().st_blocks * 512
        if len(found) < 2:
            return ""
        return f" ({(sum(found) - own) / 1e9:.1f} GB are in caches of other lists beside it, which may be deleted)"

    def reserve(self, images: ImageList, workers: int) -> None:
        """Gives a place to each image that is missing, or that has changed since it was decoded.

        Raises:
            ValueError: the disk has no room for them.
        """
        index = self._files()[0]
        bytes_of = 3 * index["height"].astype(np.int64) * index["width"]
        # What lay behind the end of a file that was cut would come back as holes with the next write.
        inside = index["offset"] + bytes_of <= (self.folder / "pixels.u8").stat().st_size
        stamps = np.array([_stamp(images.path(name)) for name in images.names], np.int64).reshape(-1, 2)
        fresh = (index["ready"] == 1) & inside & (index["size"] == stamps[:, 0]) & (index["time"] == stamps[:, 1])
        index["ready"] = fresh
        stale = np.flatnonzero(~fresh)
        wanted = ImageList(images.root, [images.names[row] for row in stale])
        with results_of(_Size(wanted), len(wanted), workers) as sizes:
            sides = np.array(list(tracked(sizes, len(wanted), "sizes of images")), np.int64).reshape(-1, 2)
        has_place = (index["height"][stale] == sides[:, 0]) & (index["width"][stale] == sides[:, 1])
        end = int((index["offset"] + bytes_of).max(initial=0))
        needed = 3 * (sides[:, 0] * sides[:, 1])[~has_place]
        written = (self.folder / "pixels.u8").stat().st_blocks * 512
        room = shutil.disk_usage(self.folder).free - _SPARE
        missing = end + int(needed.sum()) - written
        if missing > max(room, 0):
            raise UserError(
                f"the cache in {self.folder} needs {missing / 1e9:.1f} GB more, and {max(room, 0) / 1e9:.1f} GB can be "
                f"used there{self._others()}: name another folder (--cache DIR), or use --cache off"
            )
        offsets = index["offset"][stale]
        offsets[~has_place] = end + np.concatenate([[0], np.cumsum(needed)[:-1]]) if len(needed) else 0
        index["offset"][stale] = offsets
        for name, column in (("height", 0), ("width", 1)):  # behind the offset: sides alone would count as a place
            index[name][stale] = sides[:, column]
        index["size"][stale], index["time"][stale] = stamps[stale, 0], stamps[stale, 1]


@dataclass(frozen=True)
class CachedImages(ImageList):
    """A list of images whose pixels come from a cache where they are there, and from the files where not.

    Attributes:
        cache: of this list, or of a longer one.
    """

    cache: PixelCache | None = None

    def decode(self, index: int) -> Image.Image:
        name = self.names[index]
        found = self.cache.read(name) if self.cache is not None else None
        return super().decode(index) if found is None else found

    def place(self, index: int) -> tuple[int, int, int]:
        """Returns where image `index` lies, as of `PixelCache.place`; `is_complete` says that it does."""
        found = None if self.cache is None else self.cache.place(self.names[index])
        assert found is not None
        return found

    def stored(self, index: int) -> np.ndarray | None:
        """Returns image `index` `(H, W, 3)` as it lies in the cache, of which only what is used is read; or None."""
        place = None if self.cache is None else self.cache.place(self.names[index])
        if self.cache is None or place is None:
            return None
        offset, height, width = place
        found = self.cache.pixels()[offset : offset + 3 * height * width]
        # The file was cut by other hands, or has grown since it was mapped.
        return found.reshape(height, width, 3) if len(found) == 3 * height * width else None

    def is_complete(self) -> bool:
        """Returns whether all images are in the cache, to their last byte."""
        if self.cache is None:
            return False
        places = [self.cache.place(name) for name in self.names]
        size = (self.cache.folder / "pixels.u8").stat().st_size
        return all(place is not None and place[0] + 3 * place[1] * place[2] <= size for place in places)

    def check(self, index: int) -> None:
        assert self.cache is not None
        name = self.names[index]
        place = self.cache.place(name)
        limit = apply_pixel_limit()
        if place is not None and limit is not None and place[1] * place[2] > limit:  # of another --max-pixels
            raise UnreadableImage(too_large(place[1] * place[2]))
        if place is None:
            self.cache.write(name, ImageList.decode(self, index))


@dataclass(frozen=True)
class _Size:
    """Returns `(H, W)` of an image by its header, zeros where it cannot be read."""

    images: ImageList

    def __call__(self, index: int) -> tuple[int, int]:
        try:
            return self.images.size(index)
        except (OSError, ValueError, SyntaxError, UnreadableImage):  # `check` says what is wrong
            return 0, 0


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def cache_folder(images: ImageList, place: str) -> Path:
    """Returns the folder of a list's cache: by the list's root and names, so that a changed image costs itself alone.

    Other versions of what decodes may give other bytes, and have a folder of their own.

    Args:
        images: the whole list.
        place: of `--cache`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(base).expanduser() / "splitmask_backbones" if place == AUTO else Path(place).expanduser()
    digest = hashlib.sha256(os.fsencode(images.root.absolute()) + repr(images.value_range).encode())
    digest.update(f"\0Pillow {PIL.__version__}".encode())
    for codec in ("jpg", "libjpeg_turbo", "jpg_2000", "webp"):
        digest.update(f"\0{codec} {features.version(codec)}".encode())
    for name in images.names:
        digest.update(b"\0" + os.fsencode(name))
    if any(name.lower().endswith((".tif", ".tiff")) for name in images.names):
        digest.update(_TIFFS)
    return home / digest.hexdigest()[:20]


def _is_index(path: Path, count: int) -> bool:
    """Returns whether there is an index of so many images: one that a power cut left half is made anew."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return bool(found.dtype == _RECORD and found.shape == (count,))


def attach(images: ImageList, place: str) -> CachedImages:
    """Returns a list that reads from the cache that another process has made, if it did."""
    folder = cache_folder(images, place)
    cache = PixelCache(folder, images.names) if (folder / "index.npy").exists() else None
    return CachedImages(images.root, images.names, images.kind, images.notes, images.value_range, cache)


@contextlib.contextmanager
def filling(images: ImageList, place: str, workers: int) -> Iterator[CachedImages]:
    """Yields a list whose `check` fills the cache; other processes that want to fill it wait until the block ends.

    Args:
        images: the whole list.
        place: of `--cache`.
        workers: processes that read headers.

    Raises:
        ValueError: the disk has no room.
    """
    folder = cache_folder(images, place)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logger.info("another process fills the cache %s: waiting for it", folder)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        index = folder / "index.npy"
        if not _is_index(index, len(images)):
            (folder / "pixels.u8").touch()
            with replaced_at_once(index) as empty, open(empty, "wb") as file:
                np.save(file, np.zeros(len(images), _RECORD))
        cached = attach(images, place)
        assert cached.cache is not None
        cached.cache.reserve(images, workers)
        yield cached
