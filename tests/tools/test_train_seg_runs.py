"""Whole runs of train_seg: killed and resumed with evaluations, the best kept, ADE20K's layout, odd sizes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.helpers.in_process import run_tool
from tests.helpers.paths import ROOT
from tests.helpers.runs import kill_when
from tests.helpers.seg_data import make_data
from tests.helpers.seg_tool import TINY, command, error_of, run
from tools import train_seg

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

import torch
from safetensors.torch import load_file

ARGS = ["--weights", "none", "--steps", 40, "--batch-size", 2, "--img-size", 64, "--log-every", 5, "--workers", 0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("data"), count=6, size=(80, 72))
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    return root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "whole"
    result = run("--data", data, "--output", output, *ARGS, "--save-every", 20, "eval_every=15")
    assert result.returncode == 0, result.stderr
    return output


def state(path):
    return load_file(path)


def evaluations(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_a_finished_run_without_its_first_image_has_nothing_to_do(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    image = root / "images/train/0.jpg"
    image.write_bytes(image.read_bytes()[:200])
    args = ["--data", root, "--output", tmp_path / "run", *ARGS, "--max-bad-fraction", 0.5, "--steps", 2]
    assert run(*args).returncode == 0
    result = run(*args, "--resume")
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stdout


def test_killed_after_20_of_40_and_resumed_gives_the_same_bytes(data, whole, tmp_path):
    output = tmp_path / "again"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    args = command("--data", data, "--output", output, *ARGS, "--save-every", 20, "eval_every=15")
    process = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(process, output / "checkpoints", "step_00000020.safetensors")
    assert not (output / "results.json").exists()
    result = run("--data", data, "--output", output, *ARGS, "--save-every", 20, "eval_every=15", "--resume")
    assert result.returncode == 0, result.stderr
    ours, theirs = (state(folder / "checkpoints/step_00000040.safetensors") for folder in (output, whole))
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in ("results.json", "evaluations.jsonl", "best.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    best, expected = state(output / "best.safetensors"), state(whole / "best.safetensors")
    assert all(torch.equal(best[key], expected[key]) for key in expected)


def test_a_resume_has_the_runs_own_classes_where_none_are_named(whole, data, tmp_path):
    """Those of a config are in no file that a resume reads, and a file of the data may have changed."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "classes.json").unlink()
    named = ["classes=['a','b','c']"]
    args = ["--data", root, "--output", tmp_path / "run", *ARGS, "--steps", 4, "--save-every", 2]
    assert run(*args, *named).returncode == 0
    again = run(*args, "--resume")
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    first = (tmp_path / "run/results.json").read_bytes()
    for name in ("results.json", "segmentor.safetensors", "checkpoints/step_00000004.safetensors"):
        (tmp_path / "run" / name).unlink()
    assert run(*args, "--resume").returncode == 0
    assert (tmp_path / "run/results.json").read_bytes() == first
    other = tmp_path / "other.json"
    other.write_text('["a", "b", "x"]')
    assert "was" in error_of(run(*args, "--resume", "--classes", other))


def test_evaluations_the_best_and_its_use(data, whole, tmp_path):
    entries = evaluations(whole)
    assert [entry["step"] for entry in entries] == [15, 30, 40]
    assert entries[-1]["mIoU"] == json.loads((whole / "results.json").read_text())["mIoU"]
    best = json.loads((whole / "best.json").read_text())
    assert best == max(entries, key=lambda entry: entry["mIoU"])
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    result = run("--data", data, "--output", folder, "--eval-only", "--best", "--workers", 0)
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / "results_best.json").read_text())
    assert found == {key: value for key, value in best.items() if key != "step"}
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    with open(folder / "best.safetensors", "ab") as file:
        file.write(b"x")
    line = error_of(run("--data", data, "--output", folder, "--eval-only", "--best", "--workers", 0))
    assert "best.safetensors is damaged" in line


def test_tensorboard_has_training_and_evaluations(whole):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(whole))
    events.Reload()
    assert [event.step for event in events.Scalars("val/mIoU")] == [15, 30]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, 41, 5))


def test_evaluations_change_nothing_in_the_training(data, whole, tmp_path):
    output = tmp_path / "without"
    assert run("--data", data, "--output", output, *ARGS).returncode == 0
    ours, theirs = (state(folder / "checkpoints/step_00000040.safetensors") for folder in (output, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    line = error_of(run("--data", data, "--output", output, "--eval-only", "--best"))
    assert "holds no best.safetensors: train with eval_every=N" in line


def test_several_views_have_a_file_of_their_own_and_pictures(data, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    words = ["--eval-only", "--tta", "--predict", data / "images/val/0.jpg", "tta.ratios=(0.5, 1.0)", "--workers", 0]
    result = run("--data", data, "--output", folder, *words)
    assert result.returncode == 0, result.stderr
    several, single = (json.loads((folder / f"results{name}.json").read_text()) for name in ("_tta_other", ""))
    assert several.keys() == single.keys() and several["aAcc"] != single["aAcc"]
    assert (folder / "predictions/0.png").exists()


def test_ade20k_layout_from_training_to_miou(tmp_path):
    """reduce_zero_label: 0 is no class. The head learns the one class that all labelled pixels have."""
    root = make_data(tmp_path / "ADE", names=("training", "validation"), count=4, size=(90, 70), values=(0, 3, 3))
    words = ["model.backbone.encoder=vit_tiny", *TINY[:1], "model.backbone.depth=4", *TINY[2:]]
    words += ["model.auxiliary_head.channels=8", "model.decode_head.dropout_ratio=0.0"]
    words += ["train_pipeline.2.scale=(90,70)", "test_pipeline.1.scale=(90,70)", "--lr", "0.01"]
    args = ["--output", tmp_path / "run", "--steps", 30, "--batch-size", 2, "--img-size", 64, "--workers", 0]
    line = command("--data", root, "--weights", "none", *args, *words)
    line = [word for word in line if word not in TINY or word in words]
    line[2] = "seg_configs/ade20k_160k_vit_base_random.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert len(results["per_class"]) == 150 and results["mIoU"] == results["per_class"]["sky"] > 90
    assert [name for name, value in results["per_class"].items() if value is not None] == ["sky"]
    counts = json.loads((tmp_path / "run/data_report.json").read_text())["val"]
    assert counts["classes"]["sky"]["pixels"] + counts["ignored_pixels"] == 4 * 90 * 70


def test_images_smaller_than_crop_and_window(tmp_path):
    """They are padded, and the padding is no part of the loss or of the IoU."""
    root = make_data(tmp_path / "data", count=4, size=(30, 20), values=(0, 1))
    (root / "classes.json").write_text('["a", "b"]')
    args = ["--weights", "none", "--steps", 2, "--batch-size", 2, "--img-size", 64, "--workers", 0]
    words = ["model.test_cfg.mode=slide"]
    result = run("--data", root, "--output", tmp_path / "run", *args, *words)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["mIoU"] is not None
    pixels = json.loads((tmp_path / "run/data_report.json").read_text())["train"]["classes"].values()
    assert sum(entry["pixels"] for entry in pixels) == 4 * 30 * 20


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval_every=0"], "eval_every=0 must be a whole number of at least 1"),
        (["tta.ratios=(0,)"], "tta.ratios=(0,) must be factors above 0"),
        (["layout.label_suffx=x"], "did you mean 'layout.label_suffix'"),
        (["layout.label_ids=[4,5]"], "layout.label_ids holds 2 numbers for 3 classes"),
        (["custom_hooks=[{'type': 'RuntimeInfoHook'}]"], "custom_hooks need mmengine's runner"),
        (["accumulate=3"], "batch_size 2 must be a multiple of accumulate 3"),
        (["--best"], "--best goes with --eval-only or --predict"),
    ],
)
def test_new_values_are_checked(data, tmp_path, words, expected):
    assert expected in error_of(run("--data", data, "--output", tmp_path / "run", *ARGS, *words))
    assert not (tmp_path / "run").exists()


def test_a_palette_of_another_length_is_named_with_both(data, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"classes": ["a", "b", "c"], "palette": [[0, 0, 0]] * 4}))
    line = error_of(run("--data", data, "--output", tmp_path / "run", *ARGS, "--classes", classes))
    assert f"{classes}: the palette holds 4 colours for 3 classes" in line


def test_partners_that_are_missing_are_listed(tmp_path):
    root = make_data(tmp_path / "data", count=5, size=(80, 72))
    (root / "classes.json").write_text('["a", "b", "c"]')
    for i in (1, 3):
        (root / f"annotations/val/{i}.png").unlink()
    assert "images/val have no label in" in (line := error_of(run("--data", root, "--output", tmp_path / "r", *ARGS)))
    assert "1.jpg, 3.jpg" in line


def test_a_label_of_another_size(tmp_path):
    root = make_data(tmp_path / "data", count=3, size=(80, 72))
    (root / "classes.json").write_text('["a", "b", "c"]')
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(root / "annotations/train/2.png")
    line = error_of(run("--data", root, "--output", tmp_path / "run", *ARGS))
    assert "2.jpg is 80 x 72 pixels" in line and "12 x 10" in line


OLD_NECK = ["model.backbone.pyramid=tapped", "model.backbone.norm=LN", "model.backbone.out_channels=8"]


@pytest.mark.parametrize(
    ("neck", "has_fpn"), [([], False), (OLD_NECK, True)], ids=["the row's", "as recorded before the row changed"]
)
def test_a_row_of_the_ade20k_table_is_evaluated_with_the_neck_it_was_trained_with(data, tmp_path, neck, has_fpn):
    row = "seg_configs/ade20k_160k_vit_base_splitmask_ade20k.py"
    small = ["model.backbone.encoder=vit_tiny", "model.backbone.embed_dim=24", "model.backbone.depth=4"]
    small += ["model.decode_head.channels=8", "model.auxiliary_head.channels=8"]
    output = tmp_path / "run"
    args = ["--weights", "none", "--steps", 1, "--batch-size", 2, "--img-size", 64, "--workers", 0]
    result = run_tool(train_seg.main, row, *small, *neck, "--data", data, "--output", output, *args)
    assert result.returncode == 0, result.stderr
    names = set(state(output / "segmentor.safetensors"))
    assert any(".pyramid.laterals." in name for name in names) == has_fpn
    before = (output / "results.json").read_bytes()
    result = run_tool(train_seg.main, row, "--data", data, "--output", output, "--eval-only", "--workers", 0)
    assert result.returncode == 0, result.stderr
    assert (output / "results.json").read_bytes() == before
