"""Annotation files of other tools are told by their keys; the error says how COCO's format is had from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitmask_backbones.errors import UserError
from tests.helpers.det_data import coco_json
from tools.detection.coco import read_coco
from tools.detection.formats import describe_format, describe_text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"shapes": [], "imagePath": "a.jpg", "imageData": None}, "labelme's, one file an image"),
        ({"_via_img_metadata": {}, "_via_settings": {}}, "VIA's own project: export the annotations as COCO"),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "VIA's own project"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio's own JSON: export"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON, as QuPath writes it"),
        ([{"type": "Feature", "geometry": {}}], "GeoJSON, as QuPath writes it"),
        ({"classes": ["a"], "labels": {"1": []}}, "FiftyOne's own"),
        ([{"image": "a.jpg", "annotations": []}], "CreateML's: export as COCO"),
        ([{"image_id": 1, "category_id": 1, "bbox": [], "score": 0.5}], "a detector's output"),
        ({"imgHeight": 4, "imgWidth": 4, "objects": []}, "Cityscapes' polygons"),
        ({"images": [], "annotations": [{"segments_info": []}]}, "COCO's panoptic format: use the instances file"),
    ],
)
def test_a_file_of_another_tool_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation file .*x.json.*it looks like") as caught:
        read_coco(path, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<?xml version="1.0"?>\n<annotations><version>1.1</version>', "CVAT's or Pascal VOC's XML: export as COCO"),
        ('{"a": 1}\n{"a": 2}\n', "it is JSON Lines"),
        ("a,b\n1,2", "export it again"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no valid JSON") as caught:
        read_coco(path, tmp_path)
    assert message in str(caught.value)


def test_a_coco_file_is_none_of_them() -> None:
    assert describe_format(coco_json()) == "" and describe_text(json.dumps(coco_json())) == ""
    assert describe_format([]) == "" and describe_format([3]) == "" and describe_text("") == ""
