"""What the detector brings to the skeleton: values of config.json, and a resume that trusts unchanged data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo import config as dynamo

from tests.helpers.det_data import write_root
from tools.detection import task as task_module
from tools.detection.coco import CocoSplit, read_coco
from tools.detection.config import OPTIONS, load_config
from tools.detection.records import Flaws, ImageRecord, Instance
from tools.detection.splits import labelled_images
from tools.detection.task import DetectionTask
from tools.finetuning.labels import labelled
from tools.finetuning.options import FinetuneOptions


def make(root: Path, output: Path, **given: Any) -> DetectionTask:
    options = FinetuneOptions(output, False, 0, 1, 1, 0.0, None, False, None, False, True)
    base = load_config("det_configs/demo.py")
    task = DetectionTask(options, "demo", base, given, {"data": str(root)}, "torchvision")
    task.recipe = base.override(given)
    return task


def folder(path: Path) -> Any:
    return SimpleNamespace(path=path, is_main=True)


FABRIC: Any = SimpleNamespace(is_global_zero=True, broadcast=lambda value: value)


def test_a_share_of_the_labels_is_one_of_the_images_that_teach() -> None:
    """Of 20 images with objects and 80 with a crowd or nothing, a quarter is 5 and 20, whatever the seed."""
    crowd, one = (Instance((0, 0, 9, 9), 0, None, 81.0, crowd) for crowd in (True, False))
    images = [
        ImageRecord(n, f"{n}.png", 9, 9, [crowd, one] if n % 5 == 0 else [crowd] if n % 5 == 1 else [])
        for n in range(100)
    ]
    split = CocoSplit(Path("x.json"), Path(), images, [(1, "a")], Flaws(), 100, 0, Flaws())
    for seed in range(5):
        quarter = labelled_images("train", split, 0.25, seed)
        assert [image.is_empty for image in quarter].count(False) == 5 and len(quarter) == 25
        half = labelled_images("train", split, 0.5, seed)
        assert [image for image in half if image in quarter] == quarter, "nested, in the order of the file"
    assert labelled_images("val", split, 0.25, 0) == images == labelled_images("train", split, 1.0, 0)
    split.images = [image for image in images if not image.is_empty]
    assert labelled_images("train", split, 0.3, 7) == labelled("train", split.images, 0.3, 7)


def test_as_many_detections_count_as_the_recipe_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's own limit is 100: of 150 objects found in one image it would let 100 count."""
    boxes = [(20.0 * (n % 15), 20.0 * (n // 15), 20.0 * (n % 15) + 9, 20.0 * (n // 15) + 9) for n in range(150)]
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 300, "width": 300}],
                "categories": [{"id": 1, "name": "a"}],
                "annotations": [
                    {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 9, 9], "area": 81, "iscrowd": 0}
                    for n, (x, y, *_) in enumerate(boxes)
                ],
            }
        )
    )
    found = {"boxes": np.array(boxes), "labels": np.zeros(150, int), "scores": np.ones(150), "masks": None}
    monkeypatch.setattr(task_module, "detect_all", lambda *given: [(0, found)])
    ap = {}
    for limit in (200, 100):
        task = make(tmp_path, tmp_path, masks=False, detections_per_image=limit)
        task.splits = {"val": read_coco(tmp_path / "instances.json", tmp_path, with_masks=False)}
        ap[limit] = task.measure(FABRIC, torch.nn.Identity(), folder(tmp_path), final=True)["bbox"]["AP"]
    assert ap == {200: pytest.approx(100.0), 100: pytest.approx(100 * 67 / 101)}


def test_recorded_values_give_the_recipe_again(tmp_path: Path) -> None:
    task = make(tmp_path, tmp_path, lr=0.5, rois_per_image=9)
    recorded = json.loads(json.dumps(task.values()))
    assert set(recorded["values"]) == set(OPTIONS) and recorded["recipe_values"]["rois_per_image"] == 9
    assert recorded["config_values"]["rois_per_image"] == task.base.rois_per_image != 9
    assert task.recorded(recorded) == task.recipe


def test_the_best_has_the_largest_sum_of_both_aps(tmp_path: Path) -> None:
    score = make(tmp_path, tmp_path).score
    assert score({"bbox": {"AP": 10.0}, "segm": {"AP": 7.5}}) == 17.5
    assert score({"bbox": {"AP": None}, "segm": {"AP": 7.5}}) == 7.5


def test_a_resume_reads_no_image_of_unchanged_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_root(tmp_path / "root")
    task = make(tmp_path / "root", tmp_path)
    task.find_data(("train", "val"))
    identity = task.check_data(folder(tmp_path), FABRIC)
    assert [list(category) for category in task.categories] == identity["categories"]
    again = make(tmp_path / "root", tmp_path)
    again.previous = {"data": identity}
    again.find_data(("train", "val"))

    def fail(*args: Any) -> Any:
        raise AssertionError("images are checked again")

    monkeypatch.setattr("tools.detection.splits.check_split_images", fail)
    assert again.check_data(folder(tmp_path), FABRIC) == identity
    next((tmp_path / "root" / "val").iterdir()).write_bytes(b"changed")
    with pytest.raises(AssertionError, match="checked again"):
        again.check_data(folder(tmp_path), FABRIC)


def test_what_deterministic_costs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tools.detection.task.build_detector", lambda engine, *args: engine)
    monkeypatch.setattr("tools.detection.task.choose_engine", lambda name, recipe: name)
    task = make(tmp_path, tmp_path)
    task.previous = {"data": {"categories": []}}
    limit = dynamo.recompile_limit
    monkeypatch.setattr(dynamo, "recompile_limit", limit)  # put back at the end
    for engine, on in [("torchvision", False), ("detectron2", False), ("torchvision", True), ("detectron2", True)]:
        caplog.clear()
        torch.use_deterministic_algorithms(on)
        task.engine = engine
        assert task.build(None) == engine
        assert ("--engine torchvision has a fixed number" in caplog.text) == (engine == "detectron2" and on)
        assert (dynamo.recompile_limit > limit) == on
    torch.use_deterministic_algorithms(False)
