"""Images of more than 8 bits in the fine-tuning tools: one range, of the training images, recorded and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import cls_data, det_data, seg_data, seg_tool
from tests.helpers.in_process import run_tool
from tools import train_cls, train_det, train_seg


def deepen(root: Path, factor: int) -> None:
    """Makes 16-bit grey images of all, brighter ones of the evaluation."""
    for path in [*root.rglob("*.png"), *root.rglob("*.jpg")]:
        if "annotations" in path.parts:
            continue
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * (factor if "train" in str(path) else 40)
        path.unlink()
        Image.fromarray(values).save(path.with_suffix(".png"))


def check(output: Path, err: str) -> None:
    low, high = json.loads((output / "config.json").read_text())["data"]["value_range"]
    assert low >= 0 and 300 < high < 10 * 255, "by the training images, not the brighter ones"
    assert "have more than 8 bits: values from" in err


def test_detector(tmp_path: Path) -> None:
    root = det_data.write_root(tmp_path / "data")
    deepen(root, 10)
    argv = ["det_configs/demo.py", "--data", root, "--weights", "none", "--engine", "torchvision", "--workers", "0"]
    argv += ["--steps", "1", "--batch-size", "2", "--img-size", "64", "--output", tmp_path / "out"]
    done = run_tool(train_det.main, *argv)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", done.stderr)
    assert run_tool(train_det.main, *argv, "--resume").returncode == 0


def test_segmentor(tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="mmsegmentation is not installed")
    data = seg_data.make_data(tmp_path / "data", count=4, size=(48, 40), values=(0, 1))
    deepen(data, 10)
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["a", "b"]))
    argv = ["seg_configs/demo.py", *seg_tool.TINY, "--data", data, "--classes", classes, "--weights", "none"]
    argv += ["--workers", "0", "--steps", "1", "--batch-size", "2", "--img-size", "32", "--output", tmp_path / "out"]
    done = run_tool(train_seg.main, *argv)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", done.stderr)
    shown = run_tool(train_seg.main, *argv[:8], "--output", tmp_path / "out", "--predict", data / "images/val")
    assert shown.returncode == 0, shown.stderr


def test_classifier(tmp_path: Path) -> None:
    root = cls_data.write_root(tmp_path / "data", num_train=4, num_val=2)
    deepen(root, 10)
    argv = ["--recipe", "tiny", "--data", root, "--weights", "none", "--workers", "0", "--batch-size", "4"]
    done = run_tool(train_cls.main, *argv, "--steps", "1", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", done.stderr)
