"""Reads a COCO json, drops annotations that cannot be used (counted by kind), and refuses files that are broken."""

import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.sources import ImageList
from pretrain.data.value_range import ValueRange
from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_file, check_folder
from tools.detection.annotations import NO_POLYGON, read_annotation
from tools.detection.formats import describe_format, describe_text
from tools.detection.records import Flaws, ImageRecord


@dataclass
class CocoSplit:
    """A checked annotation file.

    Attributes:
        json_path: the file.
        image_dir: where its `file_name` entries lie.
        images: in the file's order; images without usable annotations are kept.
        categories: `(id, name)` by label.
        dropped: single annotations that were left out.
        num_images, num_annotations: in the file.
        corrected: usable ones that said something impossible of the image, or said it in another notation.
        renamed: old and new name of images whose `file_name` was repaired.
        doubtful: usable ones whose box, mask, crowd flag and target do not fit each other (`agreement`).
    """

    json_path: Path
    image_dir: Path
    images: list[ImageRecord]
    categories: list[tuple[int, str]]
    dropped: Flaws
    num_images: int
    num_annotations: int
    corrected: Flaws
    renamed: list[tuple[str, str]] = field(default_factory=list)
    doubtful: Flaws = field(default_factory=Flaws)
    value_range: ValueRange | None = None

    def image_list(self, records: Iterable[ImageRecord] | None = None) -> ImageList:
        """Returns the files of some of the images, or of all."""
        names = [image.file_name for image in (self.images if records is None else records)]
        return ImageList(self.image_dir, names, value_range=self.value_range)


def read_coco(
    json_path: str | Path,
    image_dir: str | Path,
    categories: Iterable[tuple[int, str]] | None = None,
    with_masks: bool = True,
) -> CocoSplit:
    """Returns the usable content of a COCO instances file.

    Args:
        json_path: `{"images": [...], "annotations": [...], "categories": [...]}`.
        image_dir: folder of its images; not looked into here.
        categories: `(id, name)` of the split that the detector is trained on; by default the file's own, by id.
        with_masks: whether objects need a mask; otherwise a box is enough.

    Raises:
        ValueError: no such file or folder, broken JSON, missing keys, duplicate ids of images or categories, other
            categories than given, or nothing usable.
    """
    path, folder = Path(json_path), check_folder(image_dir, "image folder")
    with without_collector():
        return _read(path, folder, categories, with_masks)


@contextmanager
def without_collector() -> Iterator[None]:
    """Within it Python looks for no cycles: it would, again and again in all that is read, for a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(path: Path, folder: Path, categories: Iterable[tuple[int, str]] | None, with_masks: bool) -> CocoSplit:
    content = _read_json(path)
    own = _categories(content["categories"], path)
    known = own if categories is None else _same_categories(own, list(categories), path)
    images = _images(content["images"], path)
    counts = len(images), len(content["annotations"])
    split = CocoSplit(path, folder, list(images.values()), known, Flaws(), *counts, Flaws())
    _read_annotations(content["annotations"], images, split, with_masks)
    if not has_objects(split):
        raise UserError(_nothing_usable(split, with_masks))
    return split


def has_objects(split: CocoSplit) -> bool:
    """Returns whether there is an object that is no crowd."""
    return not all(image.is_empty for image in split.images)


def _nothing_usable(split: CocoSplit, with_masks: bool) -> str:
    crowds = sum(len(image.instances) for image in split.images)
    found = [f"{crowds} with iscrowd=1, which marks regions of many objects"] if crowds else []
    found += [split.dropped.listed()] if split.dropped.kinds else []
    needed = "boxes and masks" if with_masks else "boxes"
    remedy = "; masks=false trains a box-only detector" if with_masks and NO_POLYGON in split.dropped.kinds else ""
    return (
        f"{split.json_path} holds no usable annotation ({', '.join(found) or 'it is empty'}): detection needs {needed} "
        f"of single objects in COCO's instances format{remedy}"
    )


def _read_annotations(entries: list[Any], images: dict[Any, ImageRecord], split: CocoSplit, with_masks: bool) -> None:
    """Puts the usable annotations into their images, and counts the others."""
    dropped, corrected = split.dropped, split.corrected
    labels: dict[Any, int] = {id: label for label, (id, _) in enumerate(split.categories)}
    images_by_text = Ids(images, [image.file_name for image in images.values()])
    labels_by_text = Ids(labels, [name for _, name in split.categories])
    seen: dict[Any, Any] = {}
    for entry in entries:
        id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(entry, dict):
            dropped.add("no object of an annotation", None)
            continue
        if not _is_id(id):
            corrected.add("no id of its own, numbered", None)
            id = None
        elif id in seen:
            # Files that were merged by hand: each began to count at 1.
            if entry == seen[id]:
                dropped.add("a duplicate, id and content", id)
                continue
            corrected.add("a duplicate id with other content, renumbered", id)
        else:
            seen[id] = entry
        image_id, category = entry.get("image_id"), entry.get("category_id")
        image = images.get(image_id) if _is_id(image_id) else None
        label = labels.get(category) if _is_id(category) else None
        if image is None or label is None:
            image = image if image is not None else images_by_text.find(image_id)
            label = label if label is not None else labels_by_text.find(category)
            if image is None or label is None:
                dropped.add("unknown image" if image is None else "unknown category", id)
                continue
            corrected.add("ids or names matched as text", id)
        checked = read_annotation(entry, image, label, with_masks)
        if isinstance(checked, str):
            dropped.add(checked, id)
            continue
        instance, corrections = checked
        for kind in corrections:
            corrected.add(kind, id)
        image.instances.append(instance)


class Ids:
    """Finds an entry by its id or name written otherwise: 17, 17.0 and "17" are one where no two ids become the same.

    Args:
        entries: id -> entry.
        names: of the entries, in order; an id wins over a name.
    """

    def __init__(self, entries: Mapping[Any, Any], names: Iterable[str] = ()) -> None:
        texts: dict[str, list[Any]] = {}
        for id, entry in entries.items():
            texts.setdefault(str(id).strip(), []).append(entry)
        named: dict[str, list[Any]] = {}
        for name, entry in zip(names, entries.values(), strict=False):
            named.setdefault(name.strip(), []).append(entry)
        texts = named | texts
        self._found = {text: found[0] for text, found in texts.items() if len(found) == 1}

    def find(self, id: Any) -> Any:
        """Returns the entry, None where there is none or more than one."""
        if isinstance(id, float) and id.is_integer():
            id = int(id)
        return self._found.get(str(id).strip()) if _is_id(id) else None


def image_ids(content: dict[str, Any]) -> list[Any]:
    """Returns the id of the image of each annotation of a usable file, as `read_coco` finds it; None for none."""
    known = {image["id"]: image["id"] for image in content["images"]}
    by_text = Ids(known, [image["file_name"] for image in content["images"]])
    named = [entry.get("image_id") if isinstance(entry, dict) else None for entry in content["annotations"]]
    return [id if _is_id(id) and id in known else by_text.find(id) for id in named]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _read_json(path: Path) -> dict[str, Any]:
    path = check_file(path, "annotation file")
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        known = describe_text(text[:100_000]) or "export it again"
        raise UserError(f"annotation file {path} is no valid JSON ({error}): {known}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"annotation file {path} is no UTF-8 text ({error.reason}): export it again") from None
    if not isinstance(content, dict):
        what = f"annotation file {path} holds a {type(content).__name__}, not COCO's object with 'images'"
        raise UserError(f"{what}: {describe_format(content) or 'export it as COCO'}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            known = describe_format(content) or "it must be in COCO's instances format"
            raise UserError(f"annotation file {path} has no list '{key}': {known}")
    return content


def _categories(entries: list[Any], path: Path) -> list[tuple[int, str]]:
    found: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise UserError(f"{path}: category {str(entry)[:80]} needs an 'id' and a 'name'")
        if entry["id"] in found:
            raise UserError(f"{path}: category id {entry['id']} is there twice: ids must be unique")
        found[entry["id"]] = entry["name"]
    if not found:
        raise UserError(f"{path}: 'categories' is empty: name the classes of the annotations")
    return sorted(found.items(), key=lambda item: (str(type(item[0])), item[0]))


def _same_categories(own: list[tuple[int, str]], given: list[tuple[int, str]], path: Path) -> list[tuple[int, str]]:
    names = dict(given)
    for id, name in own:
        if id in names and names[id] != name:
            raise UserError(
                f"{path}: category {id} is '{name}', in the training annotations it is '{names[id]}': "
                "both files need the same categories"
            )
        others = [known for known, title in given if title == name]
        if id not in names and others:
            raise UserError(
                f"{path}: category '{name}' has id {id}, in the training annotations it has {others[0]}: "
                "both files need the same ids"
            )
    return given


def _images(entries: list[Any], path: Path) -> dict[Any, ImageRecord]:
    images: dict[Any, ImageRecord] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise UserError(f"{path}: image {str(entry)[:80]} has no 'id'")
        id = entry["id"]
        if id in images:
            raise UserError(f"{path}: image id {id} is there twice: ids must be unique")
        name: Any = entry.get("file_name")
        size = _pixels(entry.get("height")), _pixels(entry.get("width"))
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {id} has no 'file_name'")
        if size[0] is None or size[1] is None:
            given = entry.get("height"), entry.get("width")
            raise UserError(f"{path}: image {id} ({name}) needs 'height' and 'width' as positive integers, got {given}")
        images[id] = ImageRecord(id, name, size[0], size[1])
    if not images:
        raise UserError(f"{path}: 'images' is empty: list the images, each with id, file_name, height and width")
    return images


def _pixels(value: Any) -> int | None:
    """Returns a side as a whole number above 0, also from 480.0 and "480"; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal() or isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
