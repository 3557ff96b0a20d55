"""Decoded images on disk: each is decoded once, and then read as the bytes that decoding gave.

A cache is a folder with two files: `pixels.u8`, the uint8 `(H, W, 3)` of all images one behind the other, and
`index.npy`, a record for each image. All runs and processes that read the same list share it; `cache_filling` writes
it. A run goes by the records as they were when it began: bytes that were once there to be read are never written again
(an image that changes gets a new place), so that other runs may fill the cache meanwhile, and delete it at any time.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from pretrain.data.sources import ImageList
from pretrain.training.options import AUTO

INDEX, PIXELS = "index.npy", "pixels.u8"
RECORD = np.dtype(
    [("offset", "<i8"), ("height", "<i4"), ("width", "<i4"), ("size", "<i8"), ("time", "<i8"), ("ready", "u1")]
)
"""Where an image lies and its sides; size and time of change (ns) of the file that was decoded; one of the states."""
MISSING, READY, CHANGED, WRITTEN = range(4)
"""States of an image: not there; there; there of a file that has changed (runs may still read its place); written, but
maybe not on the disk yet, which a power cut would show."""
_TIFFS = b"white is zero, no data black"
"""Since when deep TIFFs whose zero is white are turned like this: what was decoded before is another picture."""


class PixelCache:
    """The images of a list that a cache held when it was attached, whatever becomes of it meanwhile.

    Args:
        folder: that holds it.
        names: of the list, in its order.
        records: `RECORD` `(N,)`.
        file: the pixels that they are of, open.
    """

    def __init__(self, folder: Path, names: list[str], records: np.ndarray, file: FileIO) -> None:
        self.folder = folder
        self._rows = {name: row for row, name in enumerate(names)}
        status = os.fstat(file.fileno())
        # No other file has these numbers while this one is open, be it deleted.
        self._identity = status.st_dev, status.st_ino
        self._file: FileIO | None = file
        self._mapped: np.ndarray | None = None
        ends = records["offset"] + bytes_of(records)
        self._records = records.copy()
        self._records["ready"] = (records["ready"] == READY) & (ends <= status.st_size)  # cut by other hands
        self.num_bytes = int(ends.max(initial=0, where=self._records["ready"] == READY))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_mapped": None}

    def _opened(self) -> FileIO | None:
        """Returns the file of the pixels, None where it has gone, or another has taken its place."""
        if self._file is None:
            try:
                file = FileIO(self.folder / PIXELS)
            except FileNotFoundError:
                return None
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._identity:
                file.close()
                return None
            self._file = file
        return self._file

    def place(self, name: str) -> tuple[int, int, int] | None:
        """Returns the first byte, height and width of an image, None where it is not there."""
        record = self._records[self._rows[name]]
        if record["ready"] != READY:
            return None
        return int(record["offset"]), int(record["height"]), int(record["width"])

    def has(self, name: str) -> bool:
        """Returns whether an image is there."""
        return self.place(name) is not None

    def read(self, name: str) -> Image.Image | None:
        """Returns an image, None where it is not there."""
        place, file = self.place(name), self._opened()
        if place is None or file is None:
            return None
        offset, height, width = place
        data = os.pread(file.fileno(), 3 * height * width, offset)
        if len(data) < 3 * height * width:  # the file was cut by other hands
            return None
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(height, width, 3))

    def pixels(self) -> np.ndarray | None:
        """Returns the bytes of all images, uint8 `(num_bytes,)`, mapped into memory; None where the file has gone.

        They are not to be written to: what could be counts as memory that is used up, and is refused where the cache is
        larger than the memory.
        """
        file = self._opened()
        if self._mapped is None and file is not None and os.fstat(file.fileno()).st_size >= self.num_bytes > 0:
            self._mapped = np.memmap(file, np.uint8, mode="r", shape=(self.num_bytes,))
        return self._mapped


@dataclass(frozen=True)
class CachedImages(ImageList):
    """A list of images whose pixels come from a cache where they are there, and from the files where not.

    Attributes:
        cache: of this list, or of a longer one.
    """

    cache: PixelCache | None = None

    def decode(self, index: int) -> Image.Image:
        found = self.cache.read(self.names[index]) if self.cache is not None else None
        return super().decode(index) if found is None else found

    def place(self, index: int) -> tuple[int, int, int]:
        """Returns where image `index` lies, as of `PixelCache.place`; `is_complete` says that it does."""
        found = None if self.cache is None else self.cache.place(self.names[index])
        assert found is not None
        return found

    def stored(self, index: int) -> np.ndarray | None:
        """Returns image `index` `(H, W, 3)` as it lies in the cache, of which only what is used is read; or None."""
        place = None if self.cache is None else self.cache.place(self.names[index])
        pixels = None if self.cache is None else self.cache.pixels()
        if place is None or pixels is None:
            return None
        offset, height, width = place
        return pixels[offset : offset + 3 * height * width].reshape(height, width, 3)

    def is_complete(self) -> bool:
        """Returns whether all images were in the cache, to their last byte, when it was attached."""
        return self.cache is not None and all(map(self.cache.has, self.names))


def bytes_of(records: Any) -> np.ndarray:
    """Returns the bytes of each image, int64."""
    return 3 * records["height"].astype(np.int64) * records["width"]


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


def read_index(folder: Path, count: int) -> np.ndarray | None:
    """Returns the records of so many images; None where there are none, or a power cut left the file half."""
    try:
        found: np.ndarray = np.load(folder / INDEX)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == RECORD and found.shape == (count,) else None


def attach(images: ImageList, place: str) -> CachedImages:
    """Returns a list that reads from the cache that another process has made, if it did.

    Args:
        images: the whole list.
        place: of `--cache`.
    """
    cache = _attached(cache_folder(images, place), images.names)
    return CachedImages(images.root, images.names, images.kind, images.notes, images.value_range, cache)


def _attached(folder: Path, names: list[str]) -> PixelCache | None:
    # Two looks, and the file opened between them: a record is not READY while it is changed, and an index is never
    # beside pixels that are not its own.
    before = read_index(folder, len(names))
    try:
        file = FileIO(folder / PIXELS)
    except OSError:
        return None
    after = read_index(folder, len(names))
    if before is None or after is None:
        return None
    after["ready"][before != after] = MISSING
    return PixelCache(folder, names, after, file)
