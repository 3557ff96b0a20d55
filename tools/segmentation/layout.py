"""Where a data set keeps its pairs (the config's `layout`), and its lists of image and label files. Opens none."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.lists import read_lines
from pretrain.data.sources import SUFFIXES, ImageList
from pretrain.data.value_range import ValueRange
from pretrain.data.walk import walk
from splitmask_backbones.errors import UserError, check_choice, first_few
from splitmask_backbones.missing import check_path

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
NUM_LISTED = 10


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a data set; by default ROOT/images/{train*,val*} and ROOT/annotations/{train*,val*}.

    Attributes:
        images, labels: folders under ROOT; "{split}" stands for the folder of the split, also "training" for "train"
            and the like.
        image_suffix, label_suffix: endings of the files; what stands before them is the pair's name. "" means any
            suffix of pictures.
        names: a text file with one name a line, for data sets that keep both splits in one folder; "" for none.
        label_ids: the number in the label files of each class, in order; all other numbers are ignored. Empty: the
            files hold class indices.
    """

    images: str = "images/{split}"
    labels: str = "annotations/{split}"
    image_suffix: str = ""
    label_suffix: str = ""
    names: str = ""
    label_ids: tuple[int, ...] = ()


def make_layout(value: Any) -> Layout:
    """Returns the layout of the config's `layout`; None is the default one.

    Raises:
        ValueError: an unknown key, or a value of another kind.
    """
    if value is None:
        return Layout()
    if not isinstance(value, dict):
        raise UserError(f"layout must be dict(images=..., labels=..., ...), got {value!r}")
    defaults = dataclasses.asdict(Layout())
    for key, given in value.items():
        check_choice("layout key", key, defaults)
        if key == "label_ids":
            if not isinstance(given, list | tuple) or not all(type(item) is int and item >= 0 for item in given):
                raise UserError(f"layout.label_ids must be a list of whole numbers, got {given!r}")
            if len(set(given)) != len(given):
                raise UserError("layout.label_ids holds a number twice: give each class its own")
        elif not isinstance(given, str):
            raise UserError(f"layout.{key} must be text, got {given!r}")
    layout = Layout(**{**value, "label_ids": tuple(value.get("label_ids", ()))})
    both = "{split}" in layout.images and "{split}" in layout.labels
    if not both and "{split}" not in layout.names:
        raise UserError(
            'layout: "{split}" must stand in images and labels, or in names: else train and val are the same'
        )
    return layout


@dataclass(frozen=True)
class Split:
    """One split: `image_dir / pairs[i][0]` belongs to `label_dir / pairs[i][1]`; relative posix names, sorted.

    Attributes:
        label_ids: as in `Layout`.
        notes: what was left out, in words.
    """

    image_dir: Path
    label_dir: Path
    pairs: list[tuple[str, str]]
    label_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    value_range: ValueRange | None = None

    def image_list(self) -> ImageList:
        """Returns the images of all pairs."""
        return ImageList(self.image_dir, [image for image, _ in self.pairs], value_range=self.value_range)

    def fingerprint(self) -> str:
        """Returns the sha256 of all names and file sizes: the same wherever the folder lies."""
        digest = hashlib.sha256()
        for image, label in self.pairs:
            sizes = (_size_of(self.image_dir / image), _size_of(self.label_dir / label))
            digest.update(repr((image, label, sizes)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _size_of(path: Path) -> int:
    """Returns the bytes of a file, -1 of a link that leads nowhere: the check of the files names it."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def is_ade20k(root: Path) -> bool:
    """Returns whether the folders are named as in ADEChallengeData2016."""
    return all(
        (root / part / name).is_dir() for part in ("images", "annotations") for name in ("training", "validation")
    )


def check_root(root: Path, layout: Layout | None = None) -> None:
    """Raises ValueError where `--data` is no folder."""
    if not check_path(root, "--data").is_dir():
        raise UserError(f"--data {root} is not a folder: name the one that holds {_first(layout or Layout())}")


def find_split(root: Path, split: str, layout: Layout | None = None) -> Split:
    """Returns the pairs of a split; nothing but a list of names is opened.

    Args:
        root: `--data`.
        split: "train" or "val".

    Raises:
        ValueError: a folder is missing or empty, or an image or label is without its partner (they are listed).
    """
    layout = layout or Layout()
    check_root(root, layout)
    image_dir, label_dir = (_folder(root, template, split, layout) for template in (layout.images, layout.labels))
    images, image_notes = _by_name(image_dir, layout.image_suffix, SUFFIXES, "image")
    labels, label_notes = _by_name(label_dir, layout.label_suffix, LABEL_SUFFIXES, "label")
    notes = (*image_notes, *label_notes)
    if not images:
        searched = f"*{layout.image_suffix}" if layout.image_suffix else ", ".join(SUFFIXES)
        seen = f"; {'; '.join(image_notes)}" if image_notes else ""
        raise UserError(f"{image_dir} holds no images ({searched}{seen}): check --data {root}")
    if layout.names:
        listed = _listed_names(root, layout.names, split)
        if listed and not images.keys() & set(listed):  # lists with suffixes
            by_file = {file: name for name, file in images.items()}
            listed = [by_file.get(name, name) for name in listed]
        absent = sorted(name for name in listed if name not in images)
        if absent:
            raise UserError(
                f"{len(absent)} names in {root / _fill(layout.names, split)} have no image in {image_dir}: "
                f"{first_few(absent, NUM_LISTED)}: add the files, or take the names out"
            )
        images = {name: images[name] for name in listed}
        labels = {name: file for name, file in labels.items() if name in images}
    _require_partners(images, labels, image_dir, label_dir, notes)
    pairs = [(images[name], labels[name]) for name in sorted(images)]
    return Split(image_dir, label_dir, pairs, layout.label_ids, notes)


def _require_partners(
    images: dict[str, str], labels: dict[str, str], image_dir: Path, label_dir: Path, notes: tuple[str, ...]
) -> None:
    seen = f" ({'; '.join(notes)})" if notes else ""
    for names, others, folder, other_folder, kind in (
        (images, labels, image_dir, label_dir, "label"),
        (labels, images, label_dir, image_dir, "image"),
    ):
        lonely = [names[name] for name in sorted(set(names) - set(others))]
        if len(lonely) == 1:
            what = f"{folder / lonely[0]} has no {kind} in {other_folder}{seen}: add the file, or remove its partner"
            raise UserError(what)
        if lonely:
            raise UserError(
                f"{len(lonely)} files in {folder} have no {kind} in {other_folder}{seen}: "
                f"{first_few(lonely, NUM_LISTED)}: add the files, or remove their partners"
            )


def _first(layout: Layout) -> str:
    return " and ".join(f"{template.split('/')[0]}/" for template in (layout.images, layout.labels))


def _fill(template: str, split: str) -> str:
    return template.replace("{split}", split)


def _folder(root: Path, template: str, split: str, layout: Layout) -> Path:
    """Returns the folder of a split: {split} stands for its folder, whichever of the usual names that has."""
    before, has_split, after = template.partition("{split}")
    parent = root / before
    if not parent.is_dir():
        seen = sorted(folder.name for folder in root.iterdir() if folder.is_dir())[:NUM_LISTED]
        raise UserError(
            f"--data {root} has no folder {before} (found: {', '.join(seen) or 'none'}): it must hold "
            f"{_first(layout)}, each with train and val; layout.images=... and layout.labels=... name other folders"
        )
    if not has_split:
        return parent
    folders = sorted(folder for folder in parent.iterdir() if folder.is_dir())
    exact = [folder for folder in folders if folder.name.lower() in SPLITS[split]]
    found = exact or [folder for folder in folders if folder.name.lower().startswith(split)]
    if not found:
        raise UserError(f"{parent} has no folder {split}*: make {parent / split}")
    if len(found) > 1:
        raise UserError(
            f"{parent} has several folders for '{split}' ({', '.join(f.name for f in found)}): keep one of them"
        )
    folder = found[0] / after.strip("/")
    if not folder.is_dir():
        raise UserError(f"--data {root} has no folder {folder.relative_to(root)}: check the config's layout")
    return folder


def _listed_names(root: Path, template: str, split: str) -> list[str]:
    return sorted({name for _, name in read_lines(root / _fill(template, split))})


def _by_name(folder: Path, suffix: str, suffixes: tuple[str, ...], kind: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the files of a folder and its subfolders, by what stands before the suffix, and what was left out."""
    names: dict[str, str] = {}
    files, notes = walk(folder, lambda name: name.endswith(suffix) if suffix else name.lower().endswith(suffixes))
    for file in files:
        name = file.removesuffix(suffix) if suffix else file.rpartition(".")[0]
        if name in names:
            raise UserError(f"{folder} holds two {kind} files for '{name}' ({names[name]}, {file}): remove one of them")
        names[name] = file
    # With a suffix of its own a folder may hold the files of several kinds.
    notes = tuple(note for note in notes if not (suffix and "other files" in note))
    return names, tuple(f"{folder}: {note}" for note in notes)
