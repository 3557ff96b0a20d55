"""How labelled images lie on disk: each layout is recognised by its files and read into (name, label) pairs.

Names are posix paths relative to the data's root, labels are text. Free of torch.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pretrain.data.lists import read_lines
from pretrain.data.sources import find_images
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.files import load_object
from tools.classification.cars import has_cars, read_cars

Pair = tuple[str, str]

VAL_NAMES = ("val", "valid", "validation", "test", "testing")
"""Folders and lists that hold the evaluation images; the first one that is there is taken."""


@dataclass
class Listing:
    """The labelled images of one data set as its files name them.

    Attributes:
        root: folder that names are relative to.
        pairs: split -> (name, label).
        titles: label -> name of the class for people, where it differs.
        notes: what was left out, in words.
    """

    root: Path
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_folder(root: Path, needed: tuple[str, ...], domain: str | None) -> Listing:
    """Returns the images of `ROOT/train/CLASS/` and `ROOT/val/CLASS/` (or `test/`), as ImageNet's; searched deeply."""
    listing = Listing(root)
    for split in needed:
        folder = _split_folder(root, split)
        if folder is None:
            wanted = "train" if split == "train" else "val (or test)"
            raise UserError(f"--data {root} has no folder {wanted} with a folder of images a class: make it")
        names, notes = find_images(root / folder)
        listing.notes += [f"{folder}: {note}" for note in notes]
        classes = {name.partition("/")[0] for name in names}
        empty = sorted(p.name for p in (root / folder).iterdir() if p.is_dir() and p.name not in classes)
        empty = [name for name in empty if not name.startswith((".", "__"))]
        if empty:
            listing.notes.append(f"{folder}: no image in {len(empty)} class folders, {empty[0]} for one: no class")
        loose = [name for name in names if "/" not in name]
        if len(loose) == len(names):
            raise UserError(
                f"--data {root / folder} holds images without class folders, {loose[0]} for one: "
                "sort them into a folder a class, or give a list of `path label` lines"
            )
        if loose:
            raise UserError(
                f"{len(loose)} images in {root / folder} lie outside of the class folders, {loose[0]} for one: "
                "move them into the folder of their class"
            )
        listing.pairs[split] = [(f"{folder}/{name}", name.partition("/")[0]) for name in names]
    return listing


def _split_folder(root: Path, split: str) -> str | None:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    for wanted in ("train", "training") if split == "train" else VAL_NAMES:
        found = [name for name in folders if re.fullmatch(rf"{wanted}([-_]?\d+)?", name, re.IGNORECASE)]
        if len(found) > 1:
            raise UserError(f"--data {root} has more than one {split} folder ({', '.join(found)}): leave one")
        if found:
            return found[0]
    return None


def read_inat(root: Path, needed: tuple[str, ...], domain: str | None, year: str = r"\d*") -> Listing:
    """Returns the images of `train20XX.json` and `val20XX.json` (COCO-style; in ROOT or ROOT/annotations)."""
    listing = Listing(root)
    for split in needed:
        found = _inat_files(root, split, year)
        if len(found) != 1:
            named = ", ".join(path.name for path in found) or "none"
            raise UserError(
                f"--data {root} needs one {split}20XX.json, found {named}: "
                "name the year with --layout inat18 or --layout inat19"
            )
        content = load_object(found[0], "copy it again")
        try:
            files = {image["id"]: str(image["file_name"]) for image in content["images"]}
            pairs = [(files[a["image_id"]], str(a["category_id"])) for a in content["annotations"]]
            listing.titles |= {str(c["id"]): str(c["name"]) for c in content.get("categories", [])}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{found[0]} is not in iNaturalist's format ({type(error).__name__}: {error}): it needs images with id "
                "and file_name, and annotations with image_id and category_id"
            ) from None
        listing.pairs[split] = pairs
    return listing


def _inat_files(root: Path, split: str, year: str) -> list[Path]:
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    files = [path for folder in folders for path in sorted(folder.glob(f"{split}*.json"))]
    return [path for path in files if re.fullmatch(rf"{split}{year}\.json", path.name)]


def read_food101(root: Path, needed: tuple[str, ...], domain: str | None) -> Listing:
    """Returns the images of `meta/train.txt` and `meta/test.txt`, lines `CLASS/NUMBER` of `images/CLASS/NUMBER.jpg`."""
    listing = Listing(root)
    for split in needed:
        path = root / "meta" / ("train.txt" if split == "train" else "test.txt")
        names = [line for _, line in read_lines(path)]
        wrong = [name for name in names if name.count("/") != 1]
        if wrong:
            raise UserError(f"{path}: '{wrong[0]}' is not CLASS/NUMBER: copy Food-101's own file")
        listing.pairs[split] = [(f"images/{name}.jpg", name.partition("/")[0]) for name in names]
    return listing


def read_domainnet(root: Path, needed: tuple[str, ...], domain: str | None) -> Listing:
    """Returns the images of `DOMAIN_train.txt` and `DOMAIN_test.txt`, lines `DOMAIN/CLASS/FILE NUMBER`."""
    domains = sorted(path.name.removesuffix("_train.txt") for path in root.glob("*_train.txt"))
    if not domains:
        raise UserError(f"--data {root} has no DOMAIN_train.txt, such as clipart_train.txt: add DomainNet's lists")
    if domain is None and len(domains) == 1:
        domain = domains[0]
    if domain is None:
        raise UserError(f"--data {root} holds the lists of {', '.join(domains)}: choose one with --domain")
    check_choice("--domain", domain, domains)
    listing = Listing(root)
    folders: dict[str, set[str]] = {}
    for split in needed:
        path = root / f"{domain}_{'train' if split == 'train' else 'test'}.txt"
        listing.pairs[split] = read_pairs(path, root)
        for name, label in listing.pairs[split]:
            folders.setdefault(label, set()).add(os.path.basename(os.path.dirname(name)))
    listing.titles = {label: next(iter(found)) for label, found in folders.items() if len(found) == 1}
    return listing


def read_list(root: Path, needed: tuple[str, ...], domain: str | None) -> Listing:
    """Returns the images of `ROOT/train.txt` and `ROOT/val.txt` (or `test.txt`), lines `path label`."""
    listing = Listing(root)
    for split in needed:
        path = _split_list(root, split)
        if path is None:
            raise UserError(
                f"--data {root} has no {'train.txt' if split == 'train' else 'val.txt or test.txt'}: add it"
            )
        listing.pairs[split] = read_pairs(path, root)
    return listing


def _split_list(root: Path, split: str) -> Path | None:
    for wanted in ("train",) if split == "train" else VAL_NAMES:
        if (root / f"{wanted}.txt").is_file():
            return root / f"{wanted}.txt"
    return None


_HEADER = {"label", "labels", "class", "class_name", "category", "target"}
_FILES = {"filename", "file_name", "file", "path", "image", "image_path"}


def read_pairs(path: Path, root: Path) -> list[Pair]:
    """Returns the pairs of a list with lines `path label`.

    Where every line has a tab, a semicolon or a comma, the last one separates, and labels may have spaces; otherwise
    white space does. Windows paths are taken for what they name where no file is called so.

    Args:
        root: folder that names are made relative to; paths in the list are relative to the list's own folder.

    Raises:
        ValueError: no list, or a line without a label.
    """
    base, pairs = os.path.abspath(path.parent), []
    lines = read_lines(path)
    between = next((mark for mark in "\t;," if all(mark in line for _, line in lines)), None)
    for place, (number, line) in enumerate(lines):
        match = re.fullmatch(r"(.*[^\s,])[\s,]+([^\s,]+)", line)
        parts = line.rsplit(between, 1) if between else match.groups() if match else ("", "")
        name, label = (part.strip().strip("\"'") for part in parts)
        if not name or not label:
            raise UserError(f"{path}, line {number}: '{line}' is not `path label`: write both in every line")
        is_header = place == 0 and (label.lower() in _HEADER or name.lower() in _FILES)
        if is_header and not os.path.exists(_file(base, name)):  # a class may be called "target"
            continue
        pairs.append((Path(os.path.relpath(_file(base, name), os.path.abspath(root))).as_posix(), label))
    return pairs


def _file(base: str, name: str) -> str:
    file = os.path.abspath(os.path.join(base, name))
    if "\\" in name and not os.path.exists(file):
        turned = os.path.abspath(os.path.join(base, name.replace("\\", "/")))
        return turned if os.path.exists(turned) else file
    return file


def _has_inat(root: Path, year: str = r"20\d\d") -> bool:
    return bool(_inat_files(root, "train", year) or _inat_files(root, "val", year))


Reader = Callable[[Path, tuple[str, ...], str | None], Listing]


LAYOUTS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "inat18": (lambda root: _has_inat(root, "2018"), partial(read_inat, year="2018")),
    "inat19": (lambda root: _has_inat(root, "2019"), partial(read_inat, year="2019")),
    "inat": (lambda root: _has_inat(root, r"20(?!18|19)\d\d"), read_inat),
    "food101": (lambda root: (root / "images").is_dir() and (root / "meta").is_dir(), read_food101),
    "cars": (has_cars, lambda root, needed, domain: Listing(root, *read_cars(root, needed))),
    "domainnet": (lambda root: any(root.glob("*_train.txt")), read_domainnet),
    "list": (lambda root: _split_list(root, "train") is not None, read_list),
    "folder": (lambda root: _split_folder(root, "train") is not None, read_folder),
}
"""Layout -> (is it this one?, reader)."""


def find_layout(root: Path, layout: str | None) -> str:
    """Returns the layout of a root: the one named, or the one that its files show.

    Raises:
        ValueError: unknown name, none or more than one fits.
    """
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
        return layout
    found = [name for name, (fits, _) in LAYOUTS.items() if fits(root)]
    if not found:
        found = [name for name in ("folder",) if _split_folder(root, "val") is not None]
    if len(found) > 1:
        raise UserError(f"--data {root} could be {' or '.join(found)}: name one with --layout")
    if not found:
        raise UserError(
            f"--data {root} holds none of the known layouts ({', '.join(LAYOUTS)}): make train/CLASS/ and val/CLASS/ "
            "folders, or lists train.txt and val.txt of `path label` lines"
        )
    return found[0]
