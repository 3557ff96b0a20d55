"""From `--data` and its kin to two checked splits, a report of what was dropped, and images that can be read."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from det_configs.common.recipe import DetRecipe
from pretrain.data.sources import ImageList
from splitmask_backbones.errors import UserError, first_few
from splitmask_backbones.missing import check_folder
from tools.detection.annotations import NO_POLYGON
from tools.detection.coco import CocoSplit, has_objects, read_coco
from tools.detection.file_names import repair_file_names
from tools.detection.records import Flaws, ImageRecord
from tools.finetuning.labels import labelled

NUM_SHOWN = 5
logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Location:
    """Where a split lies: its COCO json and the folder of its images."""

    json_path: Path
    image_dir: Path


def locate(
    data: str | None,
    val: str | None = None,
    train_json: str | None = None,
    train_images: str | None = None,
    val_json: str | None = None,
    val_images: str | None = None,
    needed: Sequence[str] = SPLITS,
) -> dict[str, Location]:
    """Returns the locations of the needed splits.

    Args:
        data: ROOT with `train*/`, `val*/` and `annotations/instances_*.json`, or `TRAIN.json+DIR`.
        val: `VAL.json+DIR`.
        train_json: with `train_images`, wins over `data`; the same for val.
        needed: "train", "val" or both.

    Raises:
        ValueError: nothing found, more than one candidate, or half of a pair.
    """
    pairs = {"train": (train_json, train_images), "val": (val_json, val_images)}
    joined = {"train": data if data and ".json+" in data else None, "val": val}
    found: dict[str, Location] = {}
    for split in needed:
        json_path, images = pairs[split]
        if (json_path is None) != (images is None):
            given, missing = ("json", "images") if images is None else ("images", "json")
            raise UserError(f"--{split}-{given} needs --{split}-{missing} as well")
        if json_path is not None and images is not None:
            found[split] = Location(Path(json_path), Path(images))
        elif joined[split] is not None:
            found[split] = _split_pair(str(joined[split]), "--val" if split == "val" else "--data")
        elif data is not None and joined["train"] is None:
            found[split] = _in_root(Path(data), split)
        elif data is not None:
            raise UserError(f"--data {data} names the training data only: add --val VAL.json+DIR")
        else:
            raise UserError(f"no {split} data: give --data ROOT, or --{split}-json FILE with --{split}-images DIR")
    return found


def _split_pair(text: str, option: str) -> Location:
    json_path, plus, images = text.partition(".json+")
    if not plus or not images:
        raise UserError(f"{option} {text} must be FILE.json+DIR")
    return Location(Path(json_path + ".json"), Path(images))


def _in_root(root: Path, split: str) -> Location:
    if root.is_file() and root.suffix == ".json":
        raise UserError(f"--data {root} is a file: name the folder of its images too, --data {root}+DIR")
    root = check_folder(root, "--data")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.lower().startswith(split))
    found = {name: place for name in folders for place in _pairs(root, name, root / name)}
    inner = root / "images"
    if inner.is_dir() and not found:  # CVAT's and Datumaro's COCO
        below = sorted(p.name for p in inner.iterdir() if p.is_dir() and p.name.lower().startswith(split))
        found = {f"images/{name}": place for name in below for place in _pairs(root, name, inner / name)}
        folders += [f"images/{name}" for name in below]
    # train/ with instances_train2017.json: there is nothing else that it could mean.
    if not found and len(folders) == 1:
        files = sorted((root / "annotations").glob(f"instances_{split}*.json"))
        found = {folders[0]: Location(files[0], root / folders[0])} if len(files) == 1 else {}
    best = [name for name in found if name.split("/")[-1] in (split, f"{split}2017")][:1] or list(found)
    if len(best) == 1:
        return found[best[0]]
    if best:
        raise UserError(
            f"--data {root} has {len(best)} {split} splits ({', '.join(best)}): choose one with "
            f"--{split}-json and --{split}-images"
        )
    raise UserError(
        f"--data {root} has no {split} split: it needs a folder {split} (or {split}2017) with images and "
        f"annotations/instances_{split}.json (or instances_{split}2017.json); found {', '.join(folders) or 'neither'}"
        f"{_other_format(root, folders)}"
    )


def _pairs(root: Path, name: str, folder: Path) -> list[Location]:
    """Returns where the annotations of a folder of images lie: in annotations/, or within it as Roboflow has them."""
    files = (root / "annotations" / f"instances_{name}.json", folder / "_annotations.coco.json")
    return [Location(file, folder) for file in files if file.is_file()][:1]


def _other_format(root: Path, folders: Sequence[str]) -> str:
    """Returns what annotations of another format lie in the folders of a root, as the end of an error."""
    kinds = {
        ".xml": "Pascal VOC or CVAT XML",
        ".txt": "YOLO text",
        ".json": "one JSON an image (labelme, Supervisely)",
        ".csv": "CSV",
    }
    for name in (*folders, "labels", "Annotations", "annotations"):
        place = root / name
        suffixes = [path.suffix.lower() for path in sorted(place.rglob("*"))[:1000]] if place.is_dir() else []
        for suffix, kind in kinds.items():
            if suffixes.count(suffix) > (1 if suffix == ".json" else 0):
                return f"; {place} holds {kind} files: export as COCO with polygons, or as COCO boxes and masks=false"
    return ""


def read_splits(
    locations: dict[str, Location], categories: Sequence[tuple[int, str]] | None = None, with_masks: bool = True
) -> dict[str, CocoSplit]:
    """Returns the checked annotations; the training file's categories (or those given) hold for both splits."""
    splits: dict[str, CocoSplit] = {}
    for name in SPLITS:
        if name in locations:
            split = read_coco(locations[name].json_path, locations[name].image_dir, categories, with_masks)
            split.renamed = repair_file_names(split.images, split.image_dir)
            splits[name] = split
            categories = split.categories
    return splits


def fingerprint(split: CocoSplit) -> str:
    """Returns a digest of the annotation file and of the names and sizes of its images, wherever they lie."""
    digest = hashlib.sha256(split.json_path.read_bytes())
    for image in split.images:
        path = split.image_dir / image.file_name
        digest.update(
            f"\n{image.file_name}\t{path.stat().st_size if path.is_file() else -1}".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def check_split_images(
    splits: dict[str, CocoSplit], max_fraction: float, report_path: Path, workers: int
) -> dict[str, list[str]]:
    """Returns the unusable images' names by split, after naming them on stderr and in `report_path`.

    Unusable: missing, not decodable to the end, or of another size than annotated (the masks would not fit).

    Raises:
        ValueError: more than `max_fraction` of all files, or all of one split.
    """
    from pretrain.data.check import BadImage, check_images, enforce_bad_limit

    paths = {name: [str(split.image_dir / image.file_name) for image in split.images] for name, split in splits.items()}
    every = [path for listed in paths.values() for path in listed]
    images = ImageList(Path(), every)
    bad = {item.name: item for item in check_images(images, workers=workers)}
    for index, image in enumerate(image for split in splits.values() for image in split.images):
        path = every[index]
        size = None if path in bad else images.size(index)
        if size is not None and size != (image.height, image.width):
            bad[path] = BadImage(path, _other_size(Path(path), size, image))
    in_order = [bad[path] for path in dict.fromkeys(every) if path in bad]
    enforce_bad_limit(len(every), in_order, max_fraction, report_path)
    unusable = {
        name: [image.file_name for path, image in zip(paths[name], split.images, strict=True) if path in bad]
        for name, split in splits.items()
    }
    return unusable


def _other_size(path: Path, size: tuple[int, int], annotated: ImageRecord) -> str:
    """Returns the reason why an image of a size `(H, W)` cannot be used."""
    reason = f"is {size[1]}x{size[0]} pixels, its annotations say {annotated.width}x{annotated.height}"
    if size != (annotated.width, annotated.height):
        return reason
    with Image.open(path) as image:
        if image.size == (annotated.width, annotated.height):
            return f"{reason}: its EXIF data turn it: take them away if its annotations are of the pixels as stored"
    return f"{reason}: height and width of its entry are exchanged"


def labelled_images(name: str, split: CocoSplit, share: float, seed: int) -> list[ImageRecord]:
    """Returns a share of the images, as of `labelled`: of those with objects and of those without, each by itself.

    Images without an object are not trained on: a share that held more of them would hold fewer labels.
    """
    parts = ([image for image in split.images if image.is_empty is empty] for empty in (False, True))
    drawn = {image.id for part in parts for image in labelled(name, part, share, seed)}
    return [image for image in split.images if image.id in drawn]


def without(split: CocoSplit, unusable: Sequence[str]) -> None:
    """Takes images that cannot be used out of a split, in place."""
    names = set(unusable)
    split.images = [image for image in split.images if image.file_name not in names]
    if not has_objects(split):
        raise UserError(
            f"{split.json_path}: no usable image in {split.image_dir} has an object: check the image folder"
        )


def compare_objects(splits: dict[str, CocoSplit], recipe: DetRecipe) -> None:
    """Fills in what is doubtful of each split; errors as of `agreement.compare`."""
    from tools.detection.agreement import compare

    for split in splits.values():
        split.doubtful = compare(split, recipe)


def warn_about(name: str, split: CocoSplit) -> None:
    """Writes one `warning:` line to stderr for each kind of dropped, corrected or doubtful annotation."""
    for done, flaws in (("dropped", split.dropped), ("corrected", split.corrected), ("doubtful", split.doubtful)):
        for kind, (count, first) in flaws.kinds.items():
            first_id = "" if first is None else f" (first id {first})"
            remedy = "; masks=false trains a box-only detector" if kind == NO_POLYGON else ""
            logger.warning(
                "%s: %d annotation%s %s: %s%s%s", name, count, "s" * (count > 1), done, kind, first_id, remedy
            )
    if split.renamed:
        old, new = split.renamed[0]
        what = f"{len(split.renamed)} file names fit no file and were"
        what = what if len(split.renamed) > 1 else "1 file name fits no file and was"
        logger.warning("%s: %s repaired: '%s' is %s", name, what, old, new)
    seen = {instance.label for image in split.images for instance in image.instances if not instance.crowd}
    absent = [title for label, (_, title) in enumerate(split.categories) if label not in seen]
    if absent:
        logger.warning("%s: no object of %s", name, first_few(absent, NUM_SHOWN))
    twice = sorted(file for file, count in Counter(image.file_name for image in split.images).items() if count > 1)
    if twice:
        logger.warning(
            "%s: %d image files are listed under several ids, %s for one: what one entry says is missing in the others",
            name, len(twice), twice[0],
        )  # fmt: skip


def report(split: CocoSplit, unusable: Sequence[str]) -> dict[str, Any]:
    """Returns the entry of a split in data_report.json.

    What is counted as used is of the share of the labels; what was dropped, corrected or doubtful is of the whole file.
    """
    instances = [instance for image in split.images for instance in image.instances]
    return {
        "annotation_file": str(split.json_path),
        "images_in_file": split.num_images,
        "images_used": len(split.images),
        "images_dropped": len(unusable),
        "images_without_objects": sum(image.is_empty for image in split.images),
        "annotations": split.num_annotations,
        "annotations_used": len(instances),
        "annotations_dropped": _counts(split.dropped),
        "annotations_corrected": _counts(split.corrected),
        "annotations_doubtful": _counts(split.doubtful),
        "file_names_repaired": len(split.renamed),
        "crowd_regions": sum(instance.crowd for instance in instances),
        "classes": len(split.categories),
    }


def _counts(flaws: Flaws) -> dict[str, Any]:
    return {kind: {"count": count, "first_id": first} for kind, (count, first) in flaws.kinds.items()}
