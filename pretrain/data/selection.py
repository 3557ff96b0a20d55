"""Which files of a folder are images to learn from: label files and evaluation images lie beside them in data sets."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.training.evenly import evenly
from splitmask_backbones.errors import UserError

IMAGE_FOLDER = re.compile(r"images?|imgs?|jpegimages|leftimg8bit|rgb|photos?|pictures?|inputs?", re.IGNORECASE)
_LABEL = (
    r"masks?|labels?|annotations?|ground[-_ ]?truths?|gt(fine|coarse)?|seg|segmentations?(class(aug)?|object)?|trimaps?"
)
LABEL_FOLDER = re.compile(rf"(.*[-_ ])?({_LABEL})([-_ ]?\d+)?", re.IGNORECASE)
_CITYSCAPES = r"gt(fine|coarse)_((label|instance|labeltrain)ids|color)"
LABEL_SUFFIX = re.compile(rf"(?P<stem>.+)[-_.]({_LABEL}|{_CITYSCAPES})", re.IGNORECASE)
"""What the name of a label file ends with, behind that of its image."""
_ROLES = "train[-_]?val|train(?:ing)?|val|valid|validation|test|testing"
ROLE = re.compile(rf"(?P<prefix>.*?)(?P<role>{_ROLES})(?P<number>[-_]?\d*)", re.IGNORECASE)
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Formats of label files: another would change the numbers in them."""

NUM_LOOKED_AT = 4
MAX_VALUES = 32
"""Grey levels of a label map, at most; a photograph has more."""


class NothingLeft(UserError):
    """No image of a place is one that `--include` and `--exclude` leave."""


def select(
    root: Path, names: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = (), automatic: bool = True
) -> tuple[list[str], tuple[str, ...]]:
    """Returns the names to learn from, in their order, and notes on what was left out.

    Label files are those in a folder called like one (masks, labels, gtFine, SegmentationClass, ...) or with such an
    ending (x_mask.png), of a lossless format, where the images that they belong to are there too: beside a folder of
    images, or with the same names. PNGs with few grey levels whose names other images share count as label files
    whatever their folder is called. Evaluation images are those of a folder val or test beside one called train.

    Args:
        root: folder of the names.
        names: relative posix paths.
        include: globs of paths or file names; where there are any, the names that match are taken, and nothing else
            decides about them.
        exclude: globs of names that are left out.
        automatic: whether label files and evaluation images are looked for.

    Raises:
        NothingLeft: which is a ValueError.
    """
    kept, notes = list(names), []
    if include:
        kept = [name for name in kept if _matches(name, include)]
        notes.append(f"{len(names) - len(kept)} left out that --include does not name")
    elif automatic:
        for what in ("evaluation images", "label files"):
            found = evaluation_images(kept) if what == "evaluation images" else label_files(root, kept)
            if found and len(found) < len(kept):
                kept = [name for name in kept if name not in found]
                notes.append(f"{len(found)} {what} left out ({_folders(found)})")
    before = len(kept)
    if exclude:
        kept = [name for name in kept if not _matches(name, exclude)]
        notes.append(f"{before - len(kept)} left out by --exclude")
    if not kept:
        options = " ".join([*(f"--include {glob}" for glob in include), *(f"--exclude {glob}" for glob in exclude)])
        raise NothingLeft(
            f"{options} leaves none of the {len(names)} images in {root}, such as {names[0]}: change them"
        )
    return kept, tuple(note for note in notes if not note.startswith("0 "))


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch(name, glob) or fnmatch(name.rpartition("/")[2], glob) for glob in globs)


def _folders(names: Iterable[str]) -> str:
    """Returns the folders that hold most of some names, in words."""
    counts = Counter(name.rpartition("/")[0] or "." for name in names)
    listed = [folder for folder, _ in counts.most_common(3)]
    return ", ".join(listed) + (f" and {len(counts) - 3} more folders" if len(counts) > 3 else "")


def evaluation_images(names: Iterable[str]) -> set[str]:
    """Returns the names in folders called val or test that have a training folder beside them, at any depth."""
    files = _by_folder(names)
    left_out = set()
    for parent, folders in _children(files).items():
        found = [(folder, match) for folder in folders if (match := ROLE.fullmatch(folder))]
        trains = {match["prefix"] for _, match in found if match["role"].lower().startswith("train")}
        for folder, match in found:
            if not match["role"].lower().startswith("train") and match["prefix"] in trains:
                left_out.add(f"{parent}/{folder}/".lstrip("/"))
    outer = [folder for folder in files if any(f"{folder}/".startswith(start) for start in left_out)]
    return {name for folder in outer for name in files[folder]}


def label_files(root: Path, names: Sequence[str]) -> set[str]:
    """Returns the names of label files; the contents of a few PNGs are looked at where their names are shared."""
    folders = _by_folder(names)
    lossless = {folder: [name for name in files if _is_lossless(name)] for folder, files in folders.items()}
    if not any(lossless.values()):
        return set()
    beside = _children(folders)
    stems = Counter(map(_stem, names))
    lossy = {_stem(name) for name in names if not _is_lossless(name)}
    found: set[str] = set()
    for folder, files in folders.items():
        mine = lossless[folder]
        if 2 * len(mine) > len(files):
            parts = folder.split("/")
            depths = [depth for depth, part in enumerate(parts) if LABEL_FOLDER.fullmatch(part)]
            by_images = any(IMAGE_FOLDER.fullmatch(other) for d in depths for other in beside["/".join(parts[:d])])
            shares = sum(stems[image] > (image == own) for image, own in ((_image_stem(n), _stem(n)) for n in mine))
            is_paired = 2 * shares > len(mine)
            named, others = bool(depths), set(stems) if depths else lossy
            if not named and max(Counter(map(_stem, files)).values()) > 2:  # one picture in several formats
                is_paired = False
            if named and by_images or is_paired and _look_like_labels(root, mine, others, named):
                found.update(mine)
                continue
        endings = [name for name in mine if _image_stem(name) != _stem(name)]  # x_mask.png beside x.jpg
        if endings:
            here = set(map(_stem, files))
            found.update(name for name in endings if _image_stem(name) in here)
    return found


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folders[name.rpartition("/")[0]].append(name)
    return folders


def _children(folders: Iterable[str]) -> dict[str, set[str]]:
    """Returns the folders in each folder, by its path; "" is the root."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        parts = folder.split("/") if folder else []
        for depth, part in enumerate(parts):
            children["/".join(parts[:depth])].add(part)
    return children


def _is_lossless(name: str) -> bool:
    return name.lower().endswith(LOSSLESS)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0].removesuffix("_leftImg8bit")


def _image_stem(name: str) -> str:
    """Returns the name of the image that a label file belongs to."""
    match = LABEL_SUFFIX.fullmatch(name.rpartition("/")[2].rpartition(".")[0])
    return match["stem"] if match else _stem(name)


MIDDLE, MIDDLE_COLOURS = 128, 256
"""Pixels in the middle of a picture, and how many colours the labels of instances may have in it."""


def _look_like_labels(root: Path, names: Sequence[str], others: set[str], named: bool) -> bool:
    """Returns whether PNGs that share their names with other images have few levels.

    Args:
        others: what stands before the suffixes of the other images.
        named: whether their folder is called as labels are: then only photographs are none.
    """
    shared = [name for name in names if _image_stem(name) in others or _stem(name) in others]
    chosen = [shared[index] for index in evenly(len(shared), NUM_LOOKED_AT)]
    return bool(chosen) and all(_has_few_levels(root / name, named) for name in chosen)


def _has_few_levels(path: Path, named: bool) -> bool:
    try:
        with Image.open(path) as image:
            if named:  # coloured labels have few colours, soft masks many levels of grey
                if image.mode not in ("RGB", "RGBA"):
                    return True
                left, top = (max(0, side - MIDDLE) // 2 for side in image.size)
                middle = image.crop((left, top, min(left + MIDDLE, image.width), min(top + MIDDLE, image.height)))
                return middle.getcolors(MIDDLE_COLOURS) is not None
            return image.mode in ("1", "L", "P", "I", "I;16") and len(np.unique(np.asarray(image))) <= MAX_VALUES
    except Exception:  # unreadable ones are counted later
        return named
