"""From `--data` to two checked splits of labelled images, what identifies them, and a report of what was left out."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.data.check import check_images, enforce_bad_limit
from pretrain.data.lists import read_lines
from pretrain.data.sources import ImageList
from pretrain.data.value_range import ValueRange
from splitmask_backbones.errors import UserError, nearest
from splitmask_backbones.missing import check_path
from tools import cli
from tools.classification.layouts import LAYOUTS, Listing, Pair, find_layout, read_pairs
from tools.finetuning.copies import warn_about_copies

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pretrain.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass
class LabelledImages:
    """One split.

    Attributes:
        images: each once.
        labels: index of the class of each.
        num_repeated: lines that named an image again.
        num_unreadable: images that were taken out.
    """

    images: ImageList
    labels: list[int]
    num_repeated: int = 0
    num_unreadable: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Returns the sha256 (hex) of names, sizes and labels, wherever the folder lies."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        digest.update(",".join(map(str, self.labels)).encode())
        return digest.hexdigest()

    def without(self, names: set[str]) -> LabelledImages:
        """Returns the split without some images."""
        kept = self.of([name for name in self.images.names if name not in names])
        return replace(kept, num_unreadable=len(self) - len(kept))

    def of(self, names: Sequence[str]) -> LabelledImages:
        """Returns the split with some of its images alone, in the order of `names`."""
        labels = dict(zip(self.images.names, self.labels, strict=True))
        images = replace(self.images, names=list(names))
        return LabelledImages(images, [labels[name] for name in names], self.num_repeated)


@dataclass
class LabelledData:
    """The splits of a data set and its classes.

    Attributes:
        layout: name of the layout.
        labels: the label of each class as the data's files have it.
        classes: its name for people, each once.
        splits: "train", "val", or the one that was asked for.
        num_shared: images that are in both splits.
        notes: what was left out, in words.
    """

    layout: str
    labels: list[str]
    classes: list[str]
    splits: dict[str, LabelledImages]
    num_shared: int = 0
    notes: tuple[str, ...] = ()


def add_data_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds the options that `open_data` reads."""
    group = parser.add_argument_group("data (labelled images)")
    group.add_argument(
        "--data", required=required, metavar="ROOT", help="folder with both splits, or TRAIN.txt together with --val"
    )
    group.add_argument("--val", metavar="VAL.txt", help="`path label` lines; paths are relative to the list's folder")
    group.add_argument(
        "--layout",
        type=cli.choice("layout", LAYOUTS),
        metavar="|".join(LAYOUTS),
        help="how the images lie in ROOT (default: what its files show)",
    )
    group.add_argument(
        "--domain", metavar="NAME", help="of DomainNet, where ROOT holds several (default: the recipe's)"
    )
    group.add_argument(
        "--train-list",
        metavar="FILE",
        help="train only on the images that it names, one a line (such as ImageNet's balanced 1percent.txt)",
    )
    cli.add_bad_fraction(group)


@dataclass(frozen=True)
class DataOptions:
    """What the command line says about the data; each as `add_data_options` describes it."""

    data: str | None
    val: str | None = None
    layout: str | None = None
    domain: str | None = None
    train_list: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DataOptions:
        """Returns those of a parsed command line."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def open_data(
    options: DataOptions,
    domain: str | None = None,
    needed: tuple[str, ...] = SPLITS,
    classes: Sequence[tuple[str, str]] | None = None,
) -> LabelledData:
    """Returns the labelled images that the options name; no image is read.

    Args:
        options: where the images are.
        domain: of DomainNet where `--domain` is omitted and ROOT holds it.
        classes: label and name of each class, of the run that is used; by default the training images' own.

    Raises:
        ValueError: nothing there, no labels, an image with two labels, a class that only the val images have, or only
            one class.
    """
    if options.data is None or not options.data.strip():
        raise UserError("--data is empty: name a folder with labelled images")
    root = check_path(options.data, "--data")
    if root.is_file() or options.val is not None:
        layout, listing = "list", _read_two_lists(root, options.val, needed)
    else:
        layout = find_layout(root, options.layout)
        chosen = options.domain
        if chosen is None and domain is not None and (root / f"{domain}_train.txt").is_file():
            chosen = domain
        listing = LAYOUTS[layout][1](root, needed, chosen)
    if options.domain is not None and layout != "domainnet":
        raise UserError(
            f"--domain {options.domain} goes with DomainNet, and --data {options.data} is a {layout}: omit it"
        )
    if options.train_list is not None and "train" in needed:
        listing.pairs["train"] = _named_in(Path(options.train_list), listing.pairs["train"])
    return _checked(layout, listing, classes)


def _read_two_lists(data: Path, val: str | None, needed: tuple[str, ...]) -> Listing:
    if not data.is_file() and "train" in needed:
        raise UserError(f"--val {val} goes with --data TRAIN.txt, and --data {data} is a folder: omit --val")
    if val is None:
        raise UserError(f"--data {data} names the training images only: add --val VAL.txt")
    paths = {"train": data, "val": Path(val)}
    root = data if data.is_dir() else data.parent
    return Listing(root, {split: read_pairs(paths[split], root) for split in needed})


def _named_in(path: Path, pairs: list[Pair]) -> list[Pair]:
    """Returns the pairs whose images a list names: by path within the root, within the split's folder, or by file."""
    lines = [(number, line.removeprefix("./")) for number, line in read_lines(path)]
    places: dict[str, list[int]] = {line: [] for _, line in lines}
    for index, (name, _) in enumerate(pairs):
        parts = name.split("/")
        for key in {"/".join(parts[start:]) for start in range(len(parts))} & places.keys():
            places[key].append(index)
    chosen: set[int] = set()
    for number, line in lines:
        found = places[line]
        if len(found) != 1:
            what = "is none of the training images" if not found else f"could be {len(found)} of the training images"
            raise UserError(
                f"--train-list {path}, line {number}: {line} {what}: write one image's path or file name a line"
            )
        chosen.add(found[0])
    return [pairs[index] for index in sorted(chosen)]


def _checked(layout: str, listing: Listing, classes: Sequence[tuple[str, str]] | None) -> LabelledData:
    once = {split: _each_once(pairs) for split, pairs in listing.pairs.items()}
    if classes is None:
        labels = sorted(set(once["train"].values()), key=_order)
        classes = [(label, title) for label, title in zip(labels, _titles(labels, listing.titles), strict=True)]
    if not classes:
        raise UserError(f"--data {listing.root}: no training image is listed: check the list or the annotations")
    if len(classes) < 2:
        raise UserError(
            f"the training images in {listing.root} have one class only, '{classes[0][1]}': there is nothing to tell "
            "apart, so check the labels"
        )
    index = {label: number for number, (label, _) in enumerate(classes)}
    splits = {}
    for split, labelled in once.items():
        unknown = [(name, label) for name, label in labelled.items() if label not in index]
        if unknown:
            name, label = unknown[0]
            title = listing.titles.get(label, label)
            raise UserError(
                f"class '{title}' of the {split} images ({name}) is none of the {len(index)} classes of the training "
                f"images: check the labels; {nearest(title, [known for _, known in classes])}"
            )
        ordered = sorted(labelled)
        splits[split] = LabelledImages(
            ImageList(listing.root, ordered),
            [index[labelled[name]] for name in ordered],
            len(listing.pairs[split]) - len(labelled),
        )
    shared = set.intersection(*(set(labelled) for labelled in once.values())) if len(once) > 1 else set()
    labels, titles = [label for label, _ in classes], [title for _, title in classes]
    return LabelledData(layout, labels, titles, splits, len(shared), tuple(listing.notes))


def _each_once(pairs: list[Pair]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, label in pairs:
        if labels.setdefault(name, label) != label:
            raise UserError(f"{name} is labelled both '{labels[name]}' and '{label}': leave one of the labels")
    return labels


def _order(label: str) -> tuple[int, str]:
    """Numbers by value, before words; 1 and 01 are two labels."""
    return (int(label), label) if re.fullmatch(r"\d{1,9}", label) else (10**9, label)


def _titles(labels: list[str], titles: dict[str, str]) -> list[str]:
    named = [titles.get(label, label) for label in labels]
    count = Counter(named)
    return [f"{name} ({label})" if count[name] > 1 else name for name, label in zip(named, labels, strict=True)]


def find_unreadable(data: LabelledData, max_fraction: float, report_path: Path, workers: int) -> list[str]:
    """Returns the names of the images that are missing or cannot be read, after naming them on stderr and in a file.

    Raises:
        ValueError: more than `max_fraction` of all.
    """
    root = next(iter(data.splits.values())).images.root
    names = sorted({name for split in data.splits.values() for name in split.images.names})
    bad = check_images(ImageList(root, names), workers=workers)
    enforce_bad_limit(len(names), bad, max_fraction, report_path, root=root)
    return [image.name for image in bad]


def identity_of(
    data: LabelledData,
    before: dict[str, Any] | None,
    folder: RunFolder,
    fabric: Fabric,
    max_fraction: float,
    report_path: Path,
    workers: int,
) -> dict[str, Any]:
    """Returns what identifies the data: fingerprints, labels and classes, and the images that cannot be read.

    Args:
        before: identity of the run that is resumed: an unchanged list of files is trusted, and other data is told
            apart by their fingerprints before an image is read.
        max_fraction: largest share of unreadable images.

    Raises:
        ValueError: more than `max_fraction` of all are missing or cannot be read.
    """
    identity: dict[str, Any] = {name: split.fingerprint() for name, split in data.splits.items()}
    identity |= {"labels": data.labels, "classes": data.classes}
    if before:
        # Another tool's run has no such entry, and is told apart later.
        return identity | {"unreadable": before.get("unreadable", [])}
    counts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    cli.say(folder, f"{len(data.classes)} classes ({data.layout}): checking {counts} images")
    unreadable: list[str] = []
    if folder.is_main:
        unreadable = find_unreadable(data, max_fraction, report_path, workers)
    return identity | {"unreadable": fabric.broadcast(unreadable)}


def set_range(data: LabelledData, value_range: ValueRange | None) -> None:
    """Sets how more than 8 bits become 8 in all splits, in place."""
    for name, split in data.splits.items():
        data.splits[name] = replace(split, images=replace(split.images, value_range=value_range))


def without_unreadable(data: LabelledData, unreadable: Sequence[str]) -> None:
    """Takes images out of all splits, in place.

    Raises:
        ValueError: nothing is left of one.
    """
    bad = set(unreadable)
    for name, split in data.splits.items():
        data.splits[name] = split.without(bad)
        if not len(data.splits[name]):
            raise UserError(f"none of the {len(split)} {name} images in {split.images.root} can be read: repair them")


def report(data: LabelledData) -> dict[str, Any]:
    """Returns the contents of data_report.json."""
    entries: dict[str, Any] = {"layout": data.layout, "classes": len(data.classes)}
    if len(data.splits) > 1:
        entries["images_in_both_splits"] = data.num_shared
    for name, split in data.splits.items():
        counts = Counter(split.labels)
        entries[name] = {
            "root": os.fspath(split.images.root),
            "images_used": len(split),
            "images_unreadable": split.num_unreadable,
            "lines_repeated": split.num_repeated,
            "classes_without_images": len(data.classes) - len(counts),
            "images_per_class": {title: counts[label] for label, title in enumerate(data.classes)},
        }
    return entries


def warn(data: LabelledData) -> None:
    """Writes a `warning:` line to stderr for what a user may not have meant."""
    lines = [
        f"{split.num_repeated} lines of the {name} images repeat others and are left out"
        for name, split in data.splits.items()
        if split.num_repeated
    ]
    if data.num_shared:
        lines.append(f"{data.num_shared} images are both training and val images: the accuracy will be too high")
    for name, split in data.splits.items():
        present = set(split.labels)
        absent = [title for label, title in enumerate(data.classes) if label not in present]
        if absent:
            lines.append(f"no {name} image of {len(absent)} of {len(data.classes)} classes, {absent[0]} for one")
    for line in [*data.notes, *lines]:
        logger.warning("%s", line)
    warn_about_copies({name: split.images for name, split in data.splits.items()})
