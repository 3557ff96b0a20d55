"""`--rehearse` of each tool: the first steps of the run itself, timings, and nothing that looks like a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import cls_data, det_data, seg_data, seg_tool
from tests.helpers.in_process import run_tool
from tests.helpers.pretrain_tool import OPTIONS
from tools import pretrain, probe, train_cls, train_det, train_seg
from tools.reproduction.runs import find_runs

RESULTS = ("results.json", "encoder.safetensors", "detector.safetensors", "segmentor.safetensors", "checkpoints")


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in found]


def rehearsed(main: Callable[[list[str]], int], output: Path, *argv: object) -> dict[str, Any]:
    """Returns rehearsal.json of a command, after what every rehearsal keeps to was looked at."""
    for _ in range(2):  # it begins anew each time
        done = run_tool(main, *argv, "--output", output, "--rehearse")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "a rehearsal, no result" in done.stdout
    assert [path.name for path in output.iterdir()] == ["rehearsal"]  # the folder is free for the run
    assert not [name for name in RESULTS if (output / "rehearsal" / name).exists()]
    with pytest.raises(ValueError, match="no run in"):
        find_runs([output.parent])
    entry = json.loads((output / "rehearsal/rehearsal.json").read_text())
    assert entry["step_seconds"] > 0 and entry["peak_memory_bytes"] > 0
    assert all(seconds >= 0 for seconds in entry["whole_run"].values())
    return entry


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return cls_data.write_classes(tmp_path / "images", 6)


def test_pretraining_makes_the_first_steps_of_the_run(images: Path, tmp_path: Path) -> None:
    argv = [*OPTIONS, "--data", images, "--batch-size", "4", "--log-every", "1"]
    entry = rehearsed(pretrain.main, tmp_path / "out", *argv)
    assert entry["steps"] == 3 and entry["total_steps"] == 6 and entry["num_images"] == {"train": 18}
    assert (tmp_path / "out/rehearsal/rehearsal.safetensors").exists()
    first = lines(tmp_path / "out/rehearsal/metrics.jsonl")
    done = run_tool(pretrain.main, *argv, "--output", tmp_path / "out")  # the same command without the option
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "out/metrics.jsonl")[:3] == first
    refused = run_tool(pretrain.main, *argv, "--output", tmp_path / "out", "--rehearse", "--resume")
    assert refused.returncode == 2 and "--rehearse and --resume exclude each other" in refused.stderr


def test_pretraining_counts_the_images_that_the_run_trains_on(images: Path, tmp_path: Path) -> None:
    steps = OPTIONS.index("--steps")
    argv = [*OPTIONS[:steps], *OPTIONS[steps + 2 :], "--data", images, "--batch-size", "4", "--epochs", "2"]
    argv += ["--holdout", "0.4", "--monitor-every", "100"]
    entry = rehearsed(pretrain.main, tmp_path / "out", *argv)
    done = run_tool(pretrain.main, *argv, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    num_trained = entry["num_images"]["train"]
    assert f"{num_trained} images, {entry['total_steps']} steps of 4" in done.stdout
    assert num_trained < 18 and entry["total_steps"] == 2 * (num_trained // 4)


def test_detector(tmp_path: Path) -> None:
    root = det_data.write_root(tmp_path / "data")
    argv = ["det_configs/demo.py", "--data", root, "--weights", "none", "--engine", "torchvision", "--workers", "0"]
    argv += ["--steps", "9", "eval_every=2", "--batch-size", "2", "--img-size", "64"]
    entry = rehearsed(train_det.main, tmp_path / "out", *argv)
    assert entry["num_evaluations"] == 5  # after 2, 4, 6, 8 and 9 steps
    assert entry["steps"] == 3 and entry["images_per_evaluation"] == 3
    refused = run_tool(train_det.main, *argv, "--output", tmp_path / "out", "--rehearse", "--eval-only")
    assert refused.returncode == 2 and "--rehearse goes with a training" in refused.stderr


def test_a_detector_counts_the_images_with_objects(tmp_path: Path) -> None:
    root = det_data.write_root(tmp_path / "data")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    kept = {image["id"] for image in content["images"][:2]}
    file.write_text(json.dumps(content | {"annotations": [a for a in content["annotations"] if a["image_id"] in kept]}))
    argv = ["det_configs/demo.py", "--data", root, "--weights", "none", "--engine", "torchvision", "--workers", "0"]
    argv += ["--epochs", "3", "--batch-size", "1", "--img-size", "64"]
    entry = rehearsed(train_det.main, tmp_path / "out", *argv)
    assert entry["num_images"]["train"] == 2 < len(content["images"]) and entry["total_steps"] == 6


def test_segmentor(tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="mmsegmentation is not installed")
    data = seg_data.make_data(tmp_path / "data", count=6, size=(48, 40), values=(0, 1))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["a", "b"]))
    argv = ["seg_configs/demo.py", *seg_tool.TINY, "--data", data, "--classes", classes, "--weights", "none"]
    argv += ["--workers", "0", "--steps", "5", "--batch-size", "2", "--img-size", "32"]
    entry = rehearsed(train_seg.main, tmp_path / "out", *argv)
    assert entry["steps"] == 3 and entry["evaluated_images"] == 4 and entry["images_per_evaluation"] == 6


def test_classifier_and_probe(tmp_path: Path) -> None:
    root = cls_data.write_root(tmp_path / "data")
    argv = ["--recipe", "tiny", "--data", root, "--weights", "none", "--workers", "0", "--batch-size", "4"]
    entry = rehearsed(train_cls.main, tmp_path / "cls/out", *argv)
    assert entry["steps"] == 3 and entry["num_images"] == {"train": 24, "val": 12}
    argv = ["--data", root, "--weights", "none", "--model", "vit_tiny", "--img-size", "32", "--workers", "0"]
    entry = rehearsed(probe.main, tmp_path / "probe/out", *argv)
    # Its one evaluation are the features of both splits; its steps are those of the linear probes.
    assert entry["images_per_evaluation"] == 36 and entry["evaluated_images"] == 24 + 4 and entry["steps"] == 3
