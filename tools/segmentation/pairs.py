"""ROOT/images/{train*,val*} and ROOT/annotations/{train*,val*} to lists of image and label files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pretrain.sources import SUFFIXES
from splitmask_backbones.errors import UserError

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


@dataclass(frozen=True)
class Split:
    """One split: `image_dir / pairs[i][0]` belongs to `label_dir / pairs[i][1]`; relative posix names, sorted."""

    image_dir: Path
    label_dir: Path
    pairs: list[tuple[str, str]]

    def fingerprint(self) -> str:
        """Returns the sha256 of all names and file sizes: the same wherever the folder lies."""
        digest = hashlib.sha256()
        for image, label in self.pairs:
            sizes = ((self.image_dir / image).stat().st_size, (self.label_dir / label).stat().st_size)
            digest.update(repr((image, label, sizes)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def is_ade20k(root: Path) -> bool:
    """Returns whether the folders are named as in ADEChallengeData2016."""
    return all(
        (root / part / name).is_dir() for part in ("images", "annotations") for name in ("training", "validation")
    )


def find_split(root: Path, split: str) -> Split:
    """Returns the pairs of a split; nothing is opened.

    Args:
        root: `--data`.
        split: "train" or "val".

    Raises:
        ValueError: a folder is missing or empty, or an image or label is without its partner.
    """
    if not root.exists():
        raise UserError(f"--data {root} does not exist: check the path")
    if not root.is_dir():
        raise UserError(f"--data {root} is not a folder: name the one that holds images/ and annotations/")
    image_dir, label_dir = (_split_folder(root, part, split) for part in ("images", "annotations"))
    images, labels = _by_stem(image_dir, SUFFIXES, "image"), _by_stem(label_dir, LABEL_SUFFIXES, "label")
    if not images:
        raise UserError(f"{image_dir} holds no images ({', '.join(SUFFIXES)}): check --data {root}")
    for missing, names, there, here in (
        (sorted(set(images) - set(labels)), images, image_dir, label_dir),
        (sorted(set(labels) - set(images)), labels, label_dir, image_dir),
    ):
        if missing:
            what = "label" if there == image_dir else "image"
            more = f" (and {len(missing) - 1} more like it)" if len(missing) > 1 else ""
            raise UserError(
                f"{there / names[missing[0]]} has no {what} {missing[0]}.* in {here}{more}: "
                "add the file, or remove its partner"
            )
    return Split(image_dir, label_dir, [(images[stem], labels[stem]) for stem in sorted(images)])


def _split_folder(root: Path, part: str, split: str) -> Path:
    parent = root / part
    if not parent.is_dir():
        raise UserError(
            f"--data {root} has no folder {part}/: it must hold images/ and annotations/, each with train and val"
        )
    folders = sorted(folder for folder in parent.iterdir() if folder.is_dir())
    exact = [folder for folder in folders if folder.name.lower() in SPLITS[split]]
    found = exact or [folder for folder in folders if folder.name.lower().startswith(split)]
    if not found:
        raise UserError(f"{parent} has no folder {split}*: make {parent / split}")
    if len(found) > 1:
        raise UserError(
            f"{parent} has several folders for '{split}' ({', '.join(f.name for f in found)}): keep one of them"
        )
    return found[0]


def _by_stem(folder: Path, suffixes: tuple[str, ...], kind: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or not path.is_file() or path.name.startswith("."):
            continue
        name = path.relative_to(folder).as_posix()
        stem = name[: -len(path.suffix)]
        if stem in names:
            raise UserError(f"{folder} holds two {kind} files for '{stem}' ({names[stem]}, {name}): remove one of them")
        names[stem] = name
    return names
