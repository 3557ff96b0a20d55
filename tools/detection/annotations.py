"""One annotation of a COCO file to an `Instance`, or to the kind of its flaw.

What tools and hands write otherwise than COCO is converted where it can mean one thing only: polygons as flat lists or
as points, RLEs in lists, numbers as text. Such conversions are counted.
"""

import math
from operator import mul
from typing import Any

from tools.detection.notations import (
    NUMBERS,
    converted_box,
    converted_segmentation,
    crowd_flag,
    described,
    is_polygons,
    is_quoted,
)
from tools.detection.records import ImageRecord, Instance
from tools.detection.rle import rle_flaw, to_json, to_rle

NO_POLYGON = "no polygon"


def read_annotation(
    entry: dict[str, Any], image: ImageRecord, label: int, with_masks: bool
) -> tuple[Instance, list[str]] | str:
    """Returns the instance and what was corrected in it, or the kind of its flaw.

    Args:
        with_masks: whether an object needs a mask; otherwise one that cannot be used is left out, and the box stays.
    """
    corrections: list[str] = []
    box = _box(entry.get("bbox"), corrections)
    if isinstance(box, str):
        return box
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "no area"
    whole = (x, y, x + width, y + height)
    clipped = max(x, 0.0), max(y, 0.0), min(whole[2], float(image.width)), min(whole[3], float(image.height))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return "box outside the image"
    segmentation = _segmentation(entry.get("segmentation"), image, corrections)
    if isinstance(segmentation, str):
        if with_masks:
            return segmentation
        segmentation = None
    # Annotation tools round: only more than a pixel is worth counting.
    if x < -1 or y < -1 or whole[2] > image.width + 1 or whole[3] > image.height + 1:
        corrections.append("box clipped to the image")
    area: Any = entry.get("area")
    is_usable = type(area) in NUMBERS and area > 0
    if is_usable and area > image.height * image.width:
        # An object above 1e10, the end of COCO's ranges, would count as none.
        corrections.append(f"area larger than the image, that of the {'box' if segmentation is None else 'mask'} taken")
        is_usable = False
    if not is_usable:
        area = _area(segmentation, clipped, image)
        if area <= 0:
            return "no area"
    crowd = crowd_flag(entry.get("iscrowd", 0), corrections)
    if crowd is None:
        return "a crowd flag that is neither 0 nor 1"
    uncut = None if clipped == whole else whole
    return Instance(clipped, label, segmentation, float(area), crowd, entry.get("id"), uncut), corrections


def _area(segmentation: Any, box: tuple[float, ...], image: ImageRecord) -> float:
    if segmentation is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(to_rle(segmentation, image.height, image.width)))


def is_numbers(values: Any) -> bool:
    """Returns whether a list holds numbers alone, no bool; beyond 2 ** 53 a JSON integer need not fit a float."""
    types = set(map(type, values))
    if types == {float}:
        return True
    return types <= NUMBERS and all(type(value) is float or abs(value) < 2**53 for value in values)


def _box(value: Any, corrections: list[str]) -> list[float] | str:
    """Returns x, y, width, height, or the kind of flaw."""
    if type(value) is not list or len(value) != 4 or not is_numbers(value):
        found = converted_box(value)
        if found is None:
            if isinstance(value, list) and len(value) not in (0, 4) and is_numbers(value):
                return f"a box of {len(value)} numbers, not of x, y, width, height"
            return "no box"
        value, kind = found
        corrections.append(kind)
    numbers = [float(number) for number in value]
    return numbers if all(map(math.isfinite, numbers)) else "NaN"


def _segmentation(value: Any, image: ImageRecord, corrections: list[str]) -> Any:
    """Returns usable polygons (those that are not stay out) or the RLE, or the kind of flaw as a string."""
    if type(value) is dict and type(value.get("size")) is list and not is_quoted(value.get("counts")):
        return rle_flaw(value, image.height, image.width) or value
    if type(value) is not list or not value or not is_polygons(value):
        if not value or value in ([[]], [{}]):
            return NO_POLYGON
        converted = converted_segmentation(value)
        if converted is None:
            return f"a segmentation that is {described(value)}"
        value, kind = converted
        corrections.append(kind)
        if isinstance(value, dict):
            return rle_flaw(value, image.height, image.width) or value
        if value and isinstance(value[0], dict):
            return _merged(value, image)
    return _usable_polygons(value, image)


def _usable_polygons(value: list[Any], image: ImageRecord) -> Any:
    polygons, flaw = [], NO_POLYGON
    # pycocotools walks along every edge pixel by pixel: a corner at 1e12 would never end.
    farthest = 100 * max(image.height, image.width)
    for polygon in value:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2 or not is_numbers(polygon):
            continue
        if not math.isfinite(sum(polygon)):
            flaw = "NaN"
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        if (
            left >= image.width
            or top >= image.height
            or right <= 0
            or bottom <= 0
            or min(left, top) < -farthest
            or max(right, bottom) > farthest
        ):
            flaw = "polygon outside the image"
        elif shoelace(xs, ys) <= 0:
            flaw = "no area"
        else:
            polygons.append(polygon)
    return polygons or flaw


def shoelace(xs: list[float], ys: list[float]) -> float:
    """Returns the area of a polygon."""
    return 0.5 * abs(sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1])))


def _merged(rles: list[dict[str, Any]], image: ImageRecord) -> Any:
    from pycocotools import mask as coco_mask

    for rle in rles:
        flaw = rle_flaw(rle, image.height, image.width)
        if flaw:
            return flaw
    return to_json(coco_mask.merge([to_rle(rle, image.height, image.width) for rle in rles]))
