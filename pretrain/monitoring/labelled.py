"""Labelled images for a look at the features: a folder of images for each class."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.check import check_images
from pretrain.data.sources import EVALUATION, TRAIN, ImageList, find_images
from pretrain.data.value_range import ValueRange
from pretrain.training.evenly import evenly
from splitmask_backbones.errors import UserError

OPTION = "--monitor-labels"

Pair = tuple[str, str]
"""Name of an image and its class."""


@dataclass(frozen=True)
class Labelled:
    """Images and their classes.

    Attributes:
        images: all of them, known ones first.
        labels: of each, in `[0, num_classes)`.
        num_known: images whose class is known; that of the others is to be found.
        num_classes: classes.
    """

    images: ImageList
    labels: list[int]
    num_known: int
    num_classes: int


def open_labelled(path: str | Path, limit: int, value_range: ValueRange | None = None) -> Labelled:
    """Returns at most `limit` known and `limit` other images, spread evenly over the classes.

    `path` has a folder for each class (every second image of each is known), or `train` and `val` (without it `test`)
    with a folder for each class. Images that cannot be read are skipped.

    Args:
        path: searched with all subfolders.
        limit: at least 1.
        value_range: of the images that are trained on, which becomes 8 bits; None for each image's own.

    Raises:
        ValueError: no such folder, no classes, or too few images.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{OPTION} {path} is not a folder: give one with a folder of images for each class")
    known, queries = (_spread(pairs, limit) for pairs in _sides(root))
    unreadable = {image.name for image in check_images(ImageList(root, [name for name, _ in known + queries]))}
    known = [(name, label) for name, label in known if name not in unreadable]
    classes = sorted({label for _, label in known})
    queries = [(name, label) for name, label in queries if name not in unreadable and label in classes]
    if len(classes) < 2 or not queries:
        raise UserError(
            f"{OPTION} {path} needs readable images of two classes or more, known ones and others to classify; found "
            f"{len(known)} known images of {len(classes)} classes and {len(queries)} others: put more than one image "
            "of each class into a folder of its own"
        )
    pairs = known + queries
    images = ImageList(root, [name for name, _ in pairs], "labelled images", value_range=value_range)
    return Labelled(images, [classes.index(label) for _, label in pairs], len(known), len(classes))


def _split_folder(root: Path, pattern: re.Pattern[str]) -> str | None:
    """Returns the folder of a split; of several that of validation, so that no test steers a run."""
    found = [path.name for path in root.iterdir() if path.is_dir() and pattern.fullmatch(path.name)]
    return min(found, key=lambda name: (name.lower().startswith("test"), name), default=None)


def _sides(root: Path) -> tuple[list[Pair], list[Pair]]:
    """Returns the known images and those to classify."""
    train, val = _split_folder(root, TRAIN), _split_folder(root, EVALUATION)
    if train and val:
        return _find(root, f"{train}/"), _find(root, f"{val}/")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    seen = Counter[str]()
    for name, label in _find(root, ""):
        sides[seen[label] % 2].append((name, label))
        seen[label] += 1
    return sides


def _find(root: Path, prefix: str) -> list[Pair]:
    folder = root / prefix
    names, _ = find_images(folder, OPTION)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise UserError(
            f"{OPTION}: {len(loose)} images lie in {folder} itself, {loose[0]} for one: put each class into a folder "
            "of its own"
        )
    return [(prefix + name, name.partition("/")[0]) for name in names]


def _spread(pairs: list[Pair], limit: int) -> list[Pair]:
    return [pairs[index] for index in evenly(len(pairs), limit)]
