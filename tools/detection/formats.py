"""Tells annotation files of other tools by their keys, so that an error can say how COCO's format is had from them."""

from collections.abc import Mapping
from typing import Any


def describe_format(content: Any) -> str:
    """Returns what a JSON that is not COCO's was written by, and what to do, as a clause; "" where it is unknown."""
    format = _of_object(content) if isinstance(content, Mapping) else _of_list(content)
    if not format:
        return ""
    name, remedy = format
    return f"it looks like {name}: {remedy}"


def _of_object(content: Mapping[str, Any]) -> tuple[str, str] | None:
    keys = set(content)
    values = [value for value in content.values() if isinstance(value, Mapping)]
    if {"shapes", "imagePath"} <= keys:
        return "labelme's, one file an image", "convert the folder with labelme2coco, or labelme's examples"
    if "_via_img_metadata" in keys or (values and all({"filename", "regions"} <= set(value) for value in values)):
        return "VIA's own project", "export the annotations as COCO in VIA 2"
    if content.get("type") in ("FeatureCollection", "Feature"):
        return "GeoJSON, as QuPath writes it", "draw the objects of each image as polygons in pixels into a COCO file"
    if "samples" in keys or ({"labels", "classes"} <= keys and isinstance(content["labels"], Mapping)):
        return "FiftyOne's own", 'export with dataset_type=fiftyone.types.COCODetectionDataset and label_field="..."'
    if {"objects", "imgHeight"} <= keys:
        return "Cityscapes' polygons, one file an image", "convert them with cityscapesScripts"
    if {"objects", "size"} <= keys:
        return "Supervisely's, one file an image", "export the project in COCO format"
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, Mapping) and "segments_info" in first:
        return "COCO's panoptic format", "use the instances file"
    if isinstance(first, Mapping) and "caption" in first:
        return "COCO's captions", "use the instances file"
    return None


def _of_list(content: Any) -> tuple[str, str] | None:
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, Mapping):
        return None
    keys = set(first)
    if "data" in keys and keys & {"annotations", "completions", "predictions"} or "original_width" in str(keys):
        return "Label Studio's own JSON", "export the project as COCO there (boxes and polygons; brushes come as masks)"
    if first.get("type") == "Feature":
        return "GeoJSON, as QuPath writes it", "draw the objects of each image as polygons in pixels into a COCO file"
    if {"image_id", "score"} <= keys:
        return "COCO's format of results, a detector's output", "name the annotations"
    if {"image", "annotations"} <= keys:
        return "CreateML's", "export as COCO (COCO Segmentation in Roboflow)"
    if "data_row" in keys or "Labeled Data" in keys:
        return "Labelbox's own", "convert it with labelbox' COCO converter"
    return None


def describe_text(text: str) -> str:
    """Returns the same for a file that is no JSON at all."""
    start = text.lstrip()[:400]
    if start.startswith("<"):
        tool = "CVAT's or Pascal VOC's XML" if "<annotation" in start else "XML or HTML"
        return f"it is {tool}: export as COCO 1.0"
    lines = text.split("\n", 2)
    if len(lines) > 1 and all(line.strip()[:1] == "{" and line.strip()[-1:] == "}" for line in lines[:2]):
        return "it is JSON Lines, an object a line: make it one object with images, annotations and categories"
    return ""
