"""tools/train_seg.py from option to results.json, on a few tiny pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.paths import ROOT
from tests.helpers.runs import kill_when
from tests.helpers.seg_data import make_data
from tests.helpers.seg_tool import command, error_of, run

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("data"), count=6, size=(80, 72))
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    return root


def train(data, output, *args):
    return run(
        "--data", data, "--weights", "none", "--output", output, "--steps", 4, "--batch-size", 2, "--img-size", 64,
        "--log-every", 1, "--save-every", 1, *args,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "whole"
    result = train(data, output, "--workers", 0)
    assert result.returncode == 0, result.stderr
    return output


def test_eval_only_uses_what_the_run_was_trained_with(data, finished, tmp_path):
    """Neither the words nor the options of the training are given again, and the number is the same."""
    import shutil

    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "results.json").write_text("{}")
    words = [sys.executable, "tools/train_seg.py", "seg_configs/demo.py", "--data", data, "--output", output]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*map(str, words), "--eval-only", "--workers", "0"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((output / "results.json").read_text()) == json.loads((finished / "results.json").read_text())
    found = run("--data", data, "--output", output, "--eval-only", "--workers", 0, "model.test_cfg.mode=slide")
    assert found.returncode == 0 and "other data or values than the run's" in found.stdout, found.stderr
    assert (output / "results_other.json").exists()
    assert json.loads((output / "results.json").read_text()) == json.loads((finished / "results.json").read_text())


def weights(output):
    from safetensors.torch import load_file

    return load_file(output / "checkpoints/step_00000004.safetensors")


def test_the_screen_has_the_projects_own_lines(data, tmp_path):
    result = train(data, tmp_path / "run", "--workers", 0)
    assert "init_weights" not in result.stdout + result.stderr and "mmengine" not in result.stdout + result.stderr
    assert len(result.stdout.splitlines()) < 20 and result.stderr == ""


def test_results_metrics_and_report(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) == {"mIoU", "aAcc", "mAcc", "per_class"} and set(results["per_class"]) == {"a", "b", "c"}
    assert results["mIoU"] == pytest.approx(sum(results["per_class"].values()) / 3)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["images"] == 8
    assert json.loads((finished / "data_report.json").read_text())["val"]["images"] == 6


def test_stop_and_resume_changes_nothing(data, finished, tmp_path):
    import torch

    output = tmp_path / "again"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    args = command("--data", data, "--weights", "none", "--output", output, "--steps", 4, "--batch-size", 2)
    args += ["--img-size", "64", "--log-every", "1", "--save-every", "1", "--workers", "2"]
    process = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(process, output / "checkpoints", "step_00000002.safetensors")
    kept = sorted((output / "checkpoints").glob("step_*.safetensors"))
    (output / "results.json").unlink(missing_ok=True)
    with open(kept[-1], "ab") as file:  # a damaged newest checkpoint is named, the one before it used
        file.write(b"x")
    result = train(data, output, "--workers", 0, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"warning: checkpoint {kept[-1]} is damaged" in result.stderr
    ours, theirs = weights(output), weights(finished)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (output / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_finished_run_stays_as_it_is(data, finished):
    def state():
        return {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}

    before = state()
    assert train(data, finished, "--resume").returncode == 0
    assert "--lr was 0.00025 and is now 0.5" in error_of(train(data, finished, "--resume", "--lr", 0.5))
    assert "holds another run" in error_of(train(data, finished))
    assert state() == before


def test_a_share_of_the_labels_is_trained_on_and_belongs_to_the_run(data, tmp_path):
    output, words = tmp_path / "few", ["--steps", 1, "--workers", 0, "--labels", 0.5]
    assert train(data, output, *words).returncode == 0
    report = json.loads((output / "data_report.json").read_text())
    assert (report["train"]["images"], report["val"]["images"]) == (3, 6)
    words[-1] = 1
    assert "--labels was 0.5 and is now 1.0" in error_of(train(data, output, *words, "--resume"))


def test_evaluation_and_overlays_of_a_finished_run(data, finished):
    before = (finished / "results.json").read_bytes()
    result = run("--data", data, "--output", finished, "--eval-only", "--predict", data / "images/val")
    assert result.returncode == 0, result.stderr
    assert (finished / "results.json").read_bytes() == before
    overlays = sorted((finished / "predictions").iterdir())
    assert [path.name for path in overlays] == [f"{i}.png" for i in range(6)]
    with Image.open(overlays[0]) as image:
        assert image.width > 80 and image.height >= 72


def test_bf16_is_really_on(data, finished, tmp_path):
    assert train(data, tmp_path / "bf16", "--precision", "bf16", "--workers", 0).returncode == 0
    full, half = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "bf16")
    )
    assert full[0] != half[0] and full[0] == pytest.approx(half[0], rel=0.02)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--stepz", 3], "did you mean '--steps'"),
        (["model.backbone.droppath_rate=0.1"], "did you mean 'model.backbone.drop_path_rate'"),
        (["optim_wrapper.optimizer.lr=high"], "optim_wrapper.optimizer.lr=high"),
        (["--batch-size", 7], "--batch-size 7 is larger than the data set of 6 images"),
        (["--img-size", 16], "--img-size 16 is too small"),
        (["--labels", 2], "--labels 2.0 must be a share of the training images above 0 and up to 1"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--lr", "1e30"], "not finite at step"),
        (["lr.x=1"], "unknown config key 'lr.x': did you mean 'optim_wrapper.optimizer.lr'?"),
    ],
)
def test_errors_are_one_line(data, tmp_path, args, expected):
    assert expected in error_of(train(data, tmp_path / "run", *args))
    assert not (tmp_path / "run/results.json").exists()


def test_bad_label_in_val_stops_before_the_first_step(tmp_path):
    root = make_data(tmp_path / "data", count=4, size=(80, 72))
    (root / "classes.json").write_text('["a", "b", "c"]')
    label = np.zeros((72, 80), dtype=np.uint8)
    label[3, 4] = 77
    Image.fromarray(label).save(root / "annotations/val/1.png")
    line = error_of(train(root, tmp_path / "run"))
    assert "annotations/val/1.png holds the value 77" in line
    assert not (tmp_path / "run").exists()
