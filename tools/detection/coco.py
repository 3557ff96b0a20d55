"""Reads a COCO json, drops annotations that cannot be used (counted by kind), and refuses files that are broken."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.sources import ImageList
from splitmask_backbones.errors import UserError
from tools.detection.rle import rle_flaw, to_rle


@dataclass(frozen=True)
class Instance:
    """One usable annotation.

    Attributes:
        box: x1, y1, x2, y2 in pixels, within the image.
        label: contiguous class index from 0, in order of category ids.
        segmentation: polygons within COCO's format, or an RLE of the image's size.
        area: pixels, as annotated, or the mask's where that cannot be; COCO's small, medium, large.
        crowd: a region of many objects: never a training target, ignored (not missed) in evaluation.
    """

    box: tuple[float, float, float, float]
    label: int
    segmentation: Any
    area: float
    crowd: bool


@dataclass
class ImageRecord:
    """One image: its id in the file, path below the image folder, size in pixels and usable annotations."""

    id: int
    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)


@dataclass
class Flaws:
    """What is wrong with single annotations: kind -> [count, first id]."""

    kinds: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, kind: str, id: Any) -> None:
        """Counts one more of a kind."""
        self.kinds.setdefault(kind, [0, id])[0] += 1


@dataclass
class CocoSplit:
    """A checked annotation file.

    Attributes:
        json_path: the file.
        image_dir: where its `file_name` entries lie.
        images: in the file's order; images without usable annotations are kept.
        categories: `(id, name)` by label.
        dropped: single annotations that were left out.
        num_annotations: in the file.
        corrected: usable ones that said something impossible of the image.
    """

    json_path: Path
    image_dir: Path
    images: list[ImageRecord]
    categories: list[tuple[int, str]]
    dropped: Flaws
    num_annotations: int
    corrected: Flaws

    def image_list(self, records: Iterable[ImageRecord] | None = None) -> ImageList:
        """Returns the files of some of the images, or of all."""
        return ImageList(self.image_dir, [image.file_name for image in (self.images if records is None else records)])


def read_coco(
    json_path: str | Path, image_dir: str | Path, categories: Iterable[tuple[int, str]] | None = None
) -> CocoSplit:
    """Returns the usable content of a COCO instances file.

    Args:
        json_path: `{"images": [...], "annotations": [...], "categories": [...]}`.
        image_dir: folder of its images; not looked into here.
        categories: `(id, name)` of the split that the detector is trained on; by default the file's own, by id.

    Raises:
        ValueError: no such file or folder, broken JSON, missing keys, duplicate ids of images or categories, other
            categories than given, or nothing usable.
    """
    path, folder = Path(json_path), Path(image_dir)
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist or is not a folder: check the path")
    content = _read_json(path)
    own = _categories(content["categories"], path)
    known = own if categories is None else _same_categories(own, list(categories), path)
    images = _images(content["images"], path)
    labels = {id: label for label, (id, _) in enumerate(known)}
    dropped, corrected, seen = Flaws(), Flaws(), set()
    for entry in content["annotations"]:
        id = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(id):
            dropped.add("no id", None)
            continue
        if id in seen:
            dropped.add("duplicate id", id)
            continue
        seen.add(id)
        image_id = entry.get("image_id")
        image = images.get(image_id) if _is_id(image_id) else None
        checked = "unknown image" if image is None else _instance(entry, image, labels)
        if isinstance(checked, str):
            dropped.add(checked, id)
            continue
        instance, corrections = checked
        for kind in corrections:
            corrected.add(kind, id)
        assert image is not None
        image.instances.append(instance)
    split = CocoSplit(path, folder, list(images.values()), known, dropped, len(content["annotations"]), corrected)
    if not any(not instance.crowd for image in split.images for instance in image.instances):
        found = ", ".join(f"{count} with {kind}" for kind, (count, _) in dropped.kinds.items())
        raise UserError(
            f"{path} holds no usable annotation ({found or 'it is empty'}): detection needs boxes and masks of "
            "single objects in COCO's instances format"
        )
    return split


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"annotation file {path} does not exist or is not a file: check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"annotation file {path} is no valid JSON ({error}): export it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"annotation file {path} is no UTF-8 text ({error.reason}): export it again") from None
    if not isinstance(content, dict):
        raise UserError(f"annotation file {path} holds a {type(content).__name__}, not COCO's object with 'images'")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"annotation file {path} has no list '{key}': it must be in COCO's instances format")
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
        size: tuple[Any, Any] = entry.get("height"), entry.get("width")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: image {id} has no 'file_name'")
        if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
            raise UserError(f"{path}: image {id} ({name}) needs 'height' and 'width' as positive integers, got {size}")
        images[id] = ImageRecord(id, name, size[0], size[1])
    if not images:
        raise UserError(f"{path}: 'images' is empty")
    return images


def _instance(entry: dict[str, Any], image: ImageRecord, labels: dict[Any, int]) -> tuple[Instance, list[str]] | str:
    """Returns the instance and what was corrected in it, or the kind of its flaw."""
    category = entry.get("category_id")
    if not _is_id(category) or category not in labels:
        return "unknown category"
    box = entry.get("bbox")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_number(number) for number in box):
        return "no box"
    if not all(math.isfinite(number) for number in box):
        return "NaN"
    x, y, width, height = (float(number) for number in box)
    if width <= 0 or height <= 0:
        return "no area"
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + width, float(image.width)), min(y + height, float(image.height))
    if x2 <= x1 or y2 <= y1:
        return "box outside the image"
    segmentation = _segmentation(entry.get("segmentation"), image)
    if isinstance(segmentation, str):
        return segmentation
    corrections = []
    # Annotation tools round: only more than a pixel is worth counting.
    if x < -1 or y < -1 or x + width > image.width + 1 or y + height > image.height + 1:
        corrections.append("box clipped to the image")
    area: Any = entry.get("area")
    is_usable = isinstance(area, int | float) and not isinstance(area, bool) and area > 0
    if is_usable and area > image.height * image.width:
        # An object above 1e10, the end of COCO's ranges, would count as none.
        corrections.append("area larger than the image, that of the mask taken")
        is_usable = False
    if not is_usable:
        from pycocotools import mask as coco_mask

        area = float(coco_mask.area(to_rle(segmentation, image.height, image.width)))
        if area <= 0:
            return "no area"
    crowd = bool(entry.get("iscrowd", 0))
    return Instance((x1, y1, x2, y2), labels[category], segmentation, float(area), crowd), corrections


def _is_number(value: Any) -> bool:
    # Beyond 2 ** 53 a JSON integer need not fit a float.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)


def _segmentation(value: Any, image: ImageRecord) -> Any:
    """Returns usable polygons (those that are not stay out) or the RLE, or the kind of flaw as a string."""
    if isinstance(value, dict):
        return rle_flaw(value, image.height, image.width) or value
    if not isinstance(value, list) or not value:
        return "no polygon"
    polygons, flaw = [], "no polygon"
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            continue
        if not all(_is_number(number) for number in polygon):
            continue
        if not all(math.isfinite(number) for number in polygon):
            flaw = "NaN"
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        # pycocotools walks along every edge pixel by pixel: a corner at 1e12 would never end.
        if (
            max(map(abs, polygon)) > 100 * max(image.height, image.width)
            or min(xs) >= image.width
            or min(ys) >= image.height
            or max(xs) <= 0
            or max(ys) <= 0
        ):
            flaw = "polygon outside the image"
        elif _shoelace(xs, ys) <= 0:
            flaw = "no area"
        else:
            polygons.append(polygon)
    return polygons or flaw


def _shoelace(xs: list[float], ys: list[float]) -> float:
    return 0.5 * abs(sum(x * (ys[i - 1] - ys[(i + 1) % len(ys)]) for i, x in enumerate(xs)))
