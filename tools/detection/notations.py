"""Boxes and segmentations in other notations than COCO's, converted where they can mean one thing only."""

import json
from collections.abc import Mapping
from typing import Any

NUMBERS = {int, float}
_CROWD = {"0": False, "1": True, "false": False, "true": True, "": False, "none": False, "0.0": False, "1.0": True}
_BOX_KEYS = (("x", "y", "width", "height"), ("left", "top", "width", "height"), ("x", "y", "w", "h"))
_CORNER_KEYS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))


def crowd_flag(value: Any, corrections: list[str]) -> bool | None:
    """Returns whether an object is marked as a crowd, None where the flag says neither; appends what was converted."""
    if value == 0 or value == 1:
        return bool(value)
    known = _CROWD.get(str(value).strip().lower())
    if known is not None and value is not None:
        corrections.append("crowd flag given as text")
    return known


def is_polygons(value: list[Any]) -> bool:
    """Returns whether a list that is not empty can only be COCO's polygons; two numbers are a point, and make none."""
    first = value[0]
    if type(first) is not list or len(first) == 2 and len(value) > 2 and all(type(p) is list for p in value):
        return False
    return not first or type(first[0]) in NUMBERS


def is_quoted(counts: Any) -> bool:
    """Returns whether counts are Python's text for bytes: b'...'; a quotation mark is no character of an RLE."""
    return isinstance(counts, str) and counts[:2] in ("b'", 'b"') and counts[-1:] == counts[1]


def converted_box(value: Any) -> tuple[list[float], str] | None:
    """Returns the four numbers of a box in another notation and the notation's name, or None."""
    if isinstance(value, Mapping):
        lowered = {str(key).lower(): number for key, number in value.items()}
        for keys in (*_BOX_KEYS, *_CORNER_KEYS):
            numbers = _numbers([lowered.get(key) for key in keys])
            if set(lowered) == set(keys) and numbers is not None:
                x, y, right, bottom = numbers
                if keys in _CORNER_KEYS:
                    right, bottom = right - x, bottom - y
                return [x, y, right, bottom], f"box given as {', '.join(keys)}"
        return None
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    numbers = _numbers(value)
    return None if numbers is None or len(numbers) != 4 else (numbers, "box given as text or in a list of its own")


def _numbers(values: Any) -> list[float] | None:
    """Returns a list of numbers or of their text as numbers; None for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float, str) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except (ValueError, OverflowError):
        return None
    return numbers


def converted_segmentation(value: Any) -> tuple[Any, str] | None:
    """Returns polygons, an RLE or a list of RLEs, and the name of the notation they were in; None if it is unknown."""
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return None
        if not isinstance(inner, list | dict) or not inner:
            return None
        if isinstance(inner, list) and is_polygons(inner):
            return inner, "segmentation given as text"
        converted = (inner, "") if isinstance(inner, dict) and "counts" in inner else converted_segmentation(inner)
        return None if converted is None else (converted[0], "segmentation given as text")
    if isinstance(value, Mapping):
        return _converted_object(value)
    if not isinstance(value, list):
        return None
    if all(isinstance(item, Mapping) and {"size", "counts"} <= set(item) for item in value):
        rles = [_unquoted(dict(item)) for item in value]
        return rles[0] if len(rles) == 1 else rles, "RLE in a list"
    flat = _numbers(value)
    if flat is not None:
        return [flat], "polygon given as a flat list"
    points = [_point(item) for item in value]
    if all(point is not None for point in points) and len(points) > 2:
        return [[number for point in points if point for number in point]], "polygon given as a list of points"
    nested = [_of_points(item) for item in value]
    if nested and all(polygon is not None for polygon in nested):
        return nested, "polygons given as lists of points or of text"
    return None


def _converted_object(value: Mapping[str, Any]) -> tuple[Any, str] | None:
    if "counts" in value and "size" in value:
        return _unquoted(dict(value)), "RLE with its counts in quotation marks"
    for keys in (("all_points_x", "all_points_y"), ("x", "y")):  # VIA's
        xs, ys = (_numbers(value.get(key)) for key in keys)
        if xs and ys and len(xs) == len(ys):
            return [[n for point in zip(xs, ys, strict=True) for n in point]], f"polygon given as {' and '.join(keys)}"
    rings = value.get("coordinates")
    if value.get("type") == "Polygon" and isinstance(rings, list) and len(rings) == 1:  # a second ring is a hole
        ring = _of_points(rings[0])
        return None if ring is None else ([ring], "polygon given as GeoJSON")
    return None


def _of_points(value: Any) -> list[float] | None:
    """Returns the numbers of one polygon in a list of points, or of text."""
    if not isinstance(value, list):
        return None
    flat = _numbers(value)
    if flat is not None:
        return flat
    points = [_point(item) for item in value]
    return [number for point in points if point for number in point] if all(points) else None


def _point(value: Any) -> list[float] | None:
    if isinstance(value, Mapping) and {"x", "y"} <= set(value):
        value = [value["x"], value["y"]]
    numbers = _numbers(value)
    return numbers if numbers is not None and len(numbers) == 2 else None


def _unquoted(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    if not is_quoted(counts):
        return rle
    return {**rle, "counts": counts[2:-1].replace("\\\\", "\\")}


def described(value: Any) -> str:
    """Returns what a segmentation is, in words that name its format where it is known."""
    if isinstance(value, str):
        return "text" if not value.lower().endswith((".png", ".tif", ".jpg")) else "the name of a mask file"
    if isinstance(value, Mapping):
        if value.get("type") in ("Polygon", "MultiPolygon"):
            return "GeoJSON with holes or several parts"
        return f"an object with {', '.join(sorted(map(str, value))[:4])}"
    if isinstance(value, list):
        return f"a list of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
