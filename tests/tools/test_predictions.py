"""What `--predict` shows of the validation images is what the evaluation counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import cls_data, seg_data
from tests.helpers.det_data import write_root
from tests.helpers.in_process import run_tool
from tests.helpers.seg_tool import TINY
from tests.helpers.small_runs import WORDS
from tools import train_cls, train_det, train_seg


def listed(run: Path) -> dict[str, Any]:
    return json.loads((run / "predictions/predictions.json").read_text())


def test_of_a_detector(tmp_path: Path) -> None:
    root, run = write_root(tmp_path / "root"), tmp_path / "run"
    words = [*WORDS["train_det"], "--data", root, "--output", run, "--workers", "0", "--steps", "2"]
    assert run_tool(train_det.main, *words).returncode == 0
    done = run_tool(train_det.main, words[0], "--output", run, "--workers", "0", "--predict", root / "val")
    assert done.returncode == 0, done.stderr
    images = json.loads((root / "annotations/instances_val.json").read_text())["images"]
    names = {image["id"]: image["file_name"] for image in images}
    counted: dict[str, Any] = {name: [] for name in names.values()}
    for detection in json.loads((run / "detections.json").read_text()):
        counted[names[detection.pop("image_id")]].append(detection)
    assert listed(run) == {name: found for name, found in counted.items() if found} and len(listed(run)) == 3


def test_of_a_classifier(tmp_path: Path) -> None:
    root, run = cls_data.write_root(tmp_path / "root"), tmp_path / "run"
    words = ["--recipe", "tiny", "--data", root, "--weights", "none", "--steps", "40", "--workers", "0"]
    assert run_tool(train_cls.main, *words, "--output", run).returncode == 0
    done = run_tool(train_cls.main, "--output", run, "--workers", "0", "--predict", root / "val")
    assert done.returncode == 0, done.stderr
    found = listed(run)
    right = sum(classes[0]["class"] == name.split("/")[0] for name, classes in found.items())
    results = json.loads((run / "results.json").read_text())
    assert len(found) == 12 and 100 * right / 12 == pytest.approx(results["top1"]) and right > 6


def test_of_a_segmentor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    from tools.segmentation import task

    root, run = seg_data.make_data(tmp_path / "data", count=4, size=(80, 72), values=(0, 1, 2)), tmp_path / "run"
    (root / "classes.json").write_text('["a", "b", "c"]')
    words = ["--data", root, "--weights", "none", "--steps", "4", "--batch-size", "2", "--img-size", "64"]
    words = ["seg_configs/demo.py", *TINY, *words, "--workers", "0", "--output", run]
    assert run_tool(train_seg.main, *words).returncode == 0
    shown: list[np.ndarray] = []
    draw = task.draw_overlay

    def recorded(picture: Any, labels: np.ndarray, classes: Any) -> Any:
        shown.append(labels)
        return draw(picture, labels, classes)

    monkeypatch.setattr(task, "draw_overlay", recorded)
    words = ["seg_configs/demo.py", "--output", run, "--workers", "0", "--predict", root / "images/val"]
    done = run_tool(train_seg.main, *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    labels = np.stack([np.asarray(Image.open(root / f"annotations/val/{number}.png")) for number in range(4)])
    found = np.stack(shown)
    assert 100 * (found == labels).mean() == pytest.approx(results["aAcc"], abs=1e-6)
    for number, name in enumerate("abc"):
        both, either = ((found == number) & (labels == number)), ((found == number) | (labels == number))
        assert 100 * both.sum() / either.sum() == pytest.approx(results["per_class"][name], abs=1e-6)
