"""Where the images are: a folder, a data set's root, a text list or a COCO json become one sorted list of names.

Recognised by what the path is. A root that has a training split (COCO, ADE20K, or plain ``train`` and ``val`` folders)
gives that split alone: pre-training on the evaluation images by accident would make every later number worthless.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from pretrain.data.decode import UnreadableImage, read_image, read_size
from pretrain.data.lists import coco_names, read_text_list
from pretrain.data.selection import select
from pretrain.data.value_range import ValueRange
from pretrain.data.walk import walk
from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_path

SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
"""Files of a folder that count as images, in upper or lower case."""

TRAIN = re.compile(r"train(ing)?[-_]?\d*", re.IGNORECASE)
TRAINVAL = re.compile(r"train[-_]?val[-_]?\d*", re.IGNORECASE)
EVALUATION = re.compile(r"(val|valid|validation|test|testing)([-_]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class ImageList:
    """The images of a data set: ``root / name`` is the file.

    Attributes:
        root: folder that the names are relative to.
        names: relative posix paths, sorted by code point, each once; the order does not depend on where the folder
            lies.
        kind: what the source was recognised as, in words.
        notes: what was skipped, in words.
        value_range: how more than 8 bits become 8; None for the range of each image by itself.
    """

    root: Path
    names: list[str]
    kind: str = "image list"
    notes: tuple[str, ...] = ()
    value_range: ValueRange | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """Returns the file of ``name``."""
        return self.root / name

    def decode(self, index: int) -> Image.Image:
        """Returns the pixels of image ``index``, RGB and upright: the one way from a name to them.

        Raises:
            UnreadableImage: with the reason, without the path.
        """
        return read_image(self.path(self.names[index]), self.value_range)

    def decode_reduced(self, index: int, reduction: int) -> Image.Image:
        """Returns what `decode` does, of a JPEG in a `reduction` as of `read_image`."""
        return read_image(self.path(self.names[index]), self.value_range, reduction)

    def check(self, index: int) -> None:
        """Decodes image ``index`` to its end.

        Raises:
            UnreadableImage: as `decode`.
        """
        self.decode(index)

    def is_readable(self, index: int) -> bool:
        """Returns whether image ``index`` can be decoded to its end."""
        try:
            self.check(index)
        except (UnreadableImage, OSError):
            return False
        return True

    def size(self, index: int) -> tuple[int, int]:
        """Returns `(H, W)` of a readable image, without decoding it."""
        return read_size(self.path(self.names[index]))

    def read(self, index: int) -> Image.Image:
        """Returns what `decode` does, of an image that could be read when the run started.

        Raises:
            ValueError: it cannot be any more.
        """
        try:
            return self.decode(index)
        except UnreadableImage as error:
            raise lost(self.path(self.names[index]), error) from None

    def describe(self) -> str:
        """Returns one line: how many images, from where, read how, and what was skipped."""
        images = "1 image" if len(self) == 1 else f"{len(self)} images"
        return printable("; ".join([f"{images} in {self.root} ({self.kind})", *self.notes]))

    def fingerprint(self) -> str:
        """Returns the sha256 (hex) of all names and file sizes, the same wherever the folder lies, contents unread."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                size = os.stat(os.path.join(self.root, name)).st_size
            except (OSError, ValueError):
                size = -1  # listed but missing
            digest.update(os.fsencode(name) + b"\0%d\0" % size)
        return digest.hexdigest()

    def subset(self, names: Iterable[str]) -> ImageList:
        """Returns the list with only ``names``, in this list's order.

        Raises:
            ValueError: a name is not in this list.
        """
        wanted = set(names)
        unknown = wanted.difference(self.names)
        if unknown:
            raise ValueError(f"{min(unknown)!r} is not one of the {len(self)} images in {self.root}")
        return replace(self, names=[name for name in self.names if name in wanted])


def open_source(
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ImageList:
    """Returns the images that ``data`` stands for.

    Args:
        data: a folder (searched recursively; label files and evaluation images are left out, see `selection.select`),
            the root of a COCO, ADE20K or train/val data set (its training images only), a text list (one path per line,
            relative to the list's folder or absolute; blank lines and ``#`` comments are skipped), or a COCO json
            (``images[].file_name``; files that are missing stay in the list and count as unreadable later).
        images: the folder of a COCO json's images.
        include: globs of paths or file names: all others are left out.
        exclude: globs of what is left out.

    Raises:
        UserError: nothing at ``data``, no image in it, or a file of a kind that is not one of these.
    """
    found, is_folder = _open(data, images)
    names, notes = select(found.root, found.names, include, exclude, automatic=is_folder)
    return replace(found, names=names, notes=(*found.notes, *notes))


def check_source(data: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Path:
    """Returns the path of ``data`` after a look at what it is and whether ``images`` goes with it: a moment's work.

    Raises:
        UserError: nothing there, or not what `open_source` takes.
    """
    text = os.fspath(data)
    if not text:
        raise UserError("--data is empty: give an image folder, a text list, a COCO json or an ADE20K root")
    path = check_path(text, "--data")
    if path.is_dir():
        if images is not None:
            raise UserError(f"--images is for a COCO json only, but --data {text} is a folder: omit --images")
        return path
    if not path.is_file():
        raise UserError(
            f"--data {text} is neither a folder nor a regular file: give an image folder, a list or a COCO json"
        )
    if _is_json(path):
        if images is None:
            raise UserError(
                f"--data {text} is a COCO json: add --images ROOT, the folder that its file names are relative to"
            )
        if not check_path(os.fspath(images), "--images").is_dir():
            raise UserError(f"--images {images} is not a folder: give the folder of the images that {text} names")
        return path
    if images is not None:
        raise UserError(f"--images is for a COCO json only, but --data {text} is not one: omit --images")
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"--data {text} is a single image: give its folder, {path.parent}, or a text list")
    return path


def _open(data: str | os.PathLike[str], images: str | os.PathLike[str] | None) -> tuple[ImageList, bool]:
    """Returns all images, and whether a folder was searched for them."""
    path = check_source(data, images)
    if path.is_dir():
        return _open_folder(path), True
    if images is not None:
        root = check_path(os.fspath(images), "--images")
        names, notes = coco_names(path, root)
        return ImageList(root, names, f"COCO json {path.name}", notes), False
    root, names, notes = read_text_list(path)
    return ImageList(root, names, f"text list {path.name}", notes), False


def _is_json(path: Path) -> bool:
    if path.suffix.lower() == ".json":
        return True
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _open_folder(path: Path) -> ImageList:
    root, kind = _training_part(path)
    names, notes = find_images(root)
    return ImageList(root, names, kind, notes)


def _training_part(path: Path) -> tuple[Path, str]:
    """Returns the folder to search and what the layout is called."""
    inner, has_labels = path / "images", (path / "annotations").is_dir()
    if inner.is_dir():
        train = _training_folder(inner, has_labels)
        if train is not None:
            return train, f"ADE20K layout, images/{train.name} only"
        if has_labels:
            return inner, "folder images beside annotations"
    train = _training_folder(path, has_labels)
    if train is None:
        return path, "image folder"
    return train, f"{'COCO layout' if has_labels else 'training and evaluation folders'}, {train.name} only"


def _training_folder(path: Path, has_labels: bool) -> Path | None:
    """Returns the folder of training images in `path`, where labels or evaluation images lie beside it."""
    folders = sorted(name for name in os.listdir(path) if (path / name).is_dir())
    if not has_labels and not any(EVALUATION.fullmatch(name) for name in folders):
        return None  # without them a folder train_01 is like any other
    found = [name for name in folders if TRAIN.fullmatch(name)]
    found = found or [name for name in folders if TRAINVAL.fullmatch(name)]
    if len(found) > 1:
        raise UserError(
            f"--data: {path} has more than one training folder ({', '.join(found)}): give one, {path / found[0]}"
        )
    return path / found[0] if found else None


def find_images(root: Path, option: str = "--data") -> tuple[list[str], tuple[str, ...]]:
    """Returns the sorted names of the images below ``root``, and notes on what was skipped, see `walk`.

    Raises:
        UserError: there is none.
    """
    names, notes = walk(root, lambda name: name.lower().endswith(SUFFIXES), option)
    if not names:
        seen = "; ".join(notes) or "it is empty"
        raise UserError(f"{option}: no image in {root} ({seen}): looked for {', '.join(SUFFIXES)}")
    return names, notes


def split_holdout(images: ImageList, share: float) -> tuple[ImageList, ImageList]:
    """Returns the images to train on and those kept out of training, to measure on: about `share` of all.

    The name alone decides about an image: the same in every run, wherever it lies and whatever lies beside it. Nearly
    equal images, such as frames of one film, fall on both sides: there the loss on what was kept out tells less.

    Raises:
        ValueError: none is left on one side.
    """
    digests = {name: hashlib.sha256(os.fsencode(name)).digest() for name in images.names}
    kept = {name for name, digest in digests.items() if int.from_bytes(digest[:8], "big") < share * 2**64}
    if not kept or len(kept) == len(images):
        side = "none of" if not kept else "all of"
        raise UserError(f"--holdout {share} keeps {side} the {len(images)} images out of training: use another share")
    return images.subset(set(images.names) - kept), images.subset(kept)


def lost(path: str | os.PathLike[str], reason: object) -> UserError:
    """Returns what is said of an image that could be read when the run started."""
    return UserError(
        f"{path} could be read when the run started and cannot be now ({reason}): restore it, then --resume"
    )


def printable(name: str) -> str:
    """Returns ``name`` as one line of valid UTF-8: backslashes, control characters and raw bytes are escaped."""
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode() for char in text
    )
