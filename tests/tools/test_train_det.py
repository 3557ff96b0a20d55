"""tools/train_det.py from option to results.json, on a few tiny pictures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmask_backbones import create_encoder, save_encoder
from tests.helpers.det_data import write_root
from tests.helpers.in_process import run_tool
from tests.helpers.launch import free_port
from tests.helpers.paths import ROOT
from tests.helpers.runs import kill_when, strict_json
from tools import train_det
from tools.detection.task import DRAWN_SCORE

STEPS = 6
SMALL = [
    "det_configs/demo.py",
    *("--img-size", "64", "--batch-size", "2", "--workers", "0", "--log-every", "1", "--seed", "1"),
    *("out_channels=16", "box_head_width=16", "mask_head_width=16", "mask_head_convs=1", "drop_path=0.2"),
    *("rpn_post_nms_train=50", "rpn_post_nms_test=50", "detections_per_image=5", "score_threshold=0.0"),
]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/train_det.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run(*words: str) -> tuple[int, str, str]:
    done = run_tool(train_det.main, *words)
    return done.returncode, done.stdout, done.stderr


def error_of(*words: str) -> str:
    code, _, err = run(*words)
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def detections(folder: Path) -> list[tuple[float, ...]]:
    entries = json.loads((folder / "detections.json").read_text())
    return sorted((entry["image_id"], entry["score"], *entry["bbox"]) for entry in entries)


def train_words(base: Path, output: Path) -> list[str]:
    weights = str(base / "encoder.safetensors")
    words = [*SMALL, "--data", str(base / "root"), "--output", str(output), "--weights", weights]
    return [*words, "--steps", str(STEPS), "--engine", engine_of(base), "ema=0.5", "eval_every=4"]


def engine_of(base: Path) -> str:
    """Returns the engine of a run's fixture: the name of its folder, without pytest's number."""
    return next(name for name in ("torchvision", "detectron2") if base.name.startswith(name))


def write_inputs(folder: Path) -> Path:
    write_root(folder / "root")
    save_encoder(create_encoder("vit_tiny", img_size=32), folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and an encoder file."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Data, an encoder file, and one whole run in `done`, with each engine."""
    folder = write_inputs(tmp_path_factory.mktemp(request.param))
    code, out, err = run(*train_words(folder, folder / "done"))
    assert code == 0, err
    assert "grid (2, 2) to (4, 4)" in out  # the load report
    return folder


def test_a_run_writes_what_the_contract_names(base: Path) -> None:
    done = base / "done"
    results = strict_json(done / "results.json")
    assert {kind: list(values) for kind, values in results.items()} == {
        kind: ["AP", "AP50", "AP75", "APs", "APm", "APl"] for kind in ("bbox", "segm")
    }
    for values in results.values():
        assert values["APl"] is None  # no object of 96 pixels a side
        assert 0 <= values["AP"] <= 100
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    parts = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    assert all(math.isclose(line["loss"], sum(line[p] for p in parts), rel_tol=1e-4) for line in lines)
    evaluations = [json.loads(line) for line in (done / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in evaluations] == [4, STEPS]
    assert {kind: evaluations[-1][kind] for kind in ("bbox", "segm")} == results
    assert json.loads((done / "best.json").read_text()) in evaluations
    loaded = json.loads((done / "load_report.json").read_text())
    states = {entry["key"]: entry["state"] for entry in loaded["keys"]}
    assert loaded["complete"] and states["pos_embed"] == "resized" and states["blocks.0.norm1.weight"] == "loaded"
    report = json.loads((done / "data_report.json").read_text())
    assert (report["train"]["images_used"], report["val"]["annotations_used"]) == (6, 6)
    detections = json.loads((done / "detections.json").read_text())
    assert {d["category_id"] for d in detections} <= {3, 7} and {d["image_id"] for d in detections} <= {10, 11, 12}


def test_kills_and_workers_do_not_change_a_byte(base: Path, tmp_path: Path) -> None:
    words = [*train_words(base, tmp_path / "killed"), "--save-every", "2"]
    words[words.index("--workers") + 1] = "1"
    process = start(*words)
    kill_when(process, tmp_path / "killed" / "checkpoints", "step_*")
    assert not (tmp_path / "killed" / "results.json").exists()
    code, _, err = run(*words, "--resume")
    assert code == 0, err
    for name in ("detector.safetensors", "results.json", "evaluations.jsonl", "best.safetensors", "best.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (base / "done" / name).read_bytes(), name


def test_resume_of_a_finished_run_changes_nothing_and_other_values_are_named(base: Path) -> None:
    before = snapshot(base / "done")
    words = train_words(base, base / "done")
    assert run(*words, "--resume")[0] == 0
    error = error_of(*words, "--resume", "lr=0.5")
    assert "--lr was 0.0005 and is now 0.5" in error
    assert "rois_per_image= was 32 and is now 8" in error_of(*words, "--resume", "rois_per_image=8")
    assert "none" in error_of(*words, "--resume", "--weights", "none")
    assert "holds another run" in error_of(*words)
    assert snapshot(base / "done") == before


def test_a_share_of_the_labels_is_trained_on_and_belongs_to_the_run(inputs: Path, tmp_path: Path) -> None:
    words = [*SMALL, "--data", str(inputs / "root"), "--output", str(tmp_path / "few"), "--weights", "none"]
    words += ["--engine", "torchvision", "--steps", "1", "--labels"]
    num_images = len(json.loads((inputs / "root/annotations/instances_train.json").read_text())["images"])
    code, _, err = run(*words, "0.5")
    assert code == 0, err
    report = json.loads((tmp_path / "few/data_report.json").read_text())
    assert report["train"]["images_used"] == -(-num_images // 2) < num_images == report["train"]["images_in_file"]
    assert "--labels was 0.5 and is now 1.0" in error_of(*words, "1", "--resume")
    assert "labels=2.0 must be above 0 and at most 1" in error_of(*words, "2", "--resume")


def test_two_processes_check_the_images_once_and_share_the_work(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "root", tmp_path / "root")
    victim = next((tmp_path / "root" / "train").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    words = [*SMALL, "--data", str(tmp_path / "root"), "--output", str(tmp_path / "two"), "--weights", "none"]
    words += ["--steps", "2", "--max-bad-fraction", "0.2", "--engine", engine_of(base), "pyramid_norm=BN"]
    words += ["--predict", str(tmp_path / "root" / "val")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    result = subprocess.run(
        [*launch, f"--master-port={free_port()}", "tools/train_det.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("checking") == 1 and result.stderr.count("unreadable image") == 1
    assert (tmp_path / "two" / "bad_images.txt").read_text().startswith(str(victim))
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2
    found = detections(tmp_path / "two")
    assert {image for image, *_ in found} == {10, 11, 12}  # both processes' images
    predicted = json.loads((tmp_path / "two" / "predictions" / "predictions.json").read_text())
    assert list(predicted) == sorted(path.name for path in (tmp_path / "root" / "val").iterdir())
    strong = sum(entry["score"] >= DRAWN_SCORE for listed in predicted.values() for entry in listed)
    assert f"{strong} detections of score" in result.stdout
    # Each has batch statistics of its own after a step: all detect with those that are kept.
    words = [*SMALL[:1], "--data", str(tmp_path / "root"), "--output", str(tmp_path / "two"), "--workers", "0"]
    code, _, err = run(*words, "--eval-only")
    assert code == 0, err
    again = detections(tmp_path / "two")
    assert len(again) == len(found) and all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-5) for a, b in zip(sum(again, ()), sum(found, ()), strict=True)
    )


def test_bfloat16_stays_close_and_rounds_no_box(base: Path, tmp_path: Path) -> None:
    words = [*train_words(base, tmp_path / "bf16"), "--precision", "bf16"]
    words[words.index("--steps") + 1] = "1"
    code, _, err = run(*words)
    assert code == 0, err
    first, expected = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        for folder in (tmp_path / "bf16", base / "done")
    )
    assert math.isclose(first["loss_rpn_box_reg"], expected["loss_rpn_box_reg"], rel_tol=0.02)
    assert math.isclose(first["loss"], expected["loss"], rel_tol=0.1)


def test_evaluation_alone_gives_the_same_numbers(base: Path) -> None:
    before = snapshot(base / "done")
    (base / "done" / "results.json").unlink()
    words = [*SMALL[:1], "--data", str(base / "root"), "--output", str(base / "done"), "--workers", "0"]
    code, out, err = run(*words, "--eval-only")
    assert code == 0, err
    assert "segm: AP" in out
    assert snapshot(base / "done") == before


@pytest.mark.parametrize("what", ["data", "values"])
def test_evaluation_of_other_data_or_with_other_values_leaves_the_runs_files(
    what: str, base: Path, tmp_path: Path
) -> None:
    """Its numbers, detections and bad images are in files of their own, and the run's warning stays with them."""
    shutil.copytree(base / "done", run_dir := tmp_path / "run")
    results = {**json.loads((run_dir / "results.json").read_text()), "warning": "half of the weights"}
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "bad_images.txt").write_text("of the training\n")
    before = snapshot(run_dir)
    root, more = base / "root", ["score_threshold=0.9"]
    if what == "data":
        shutil.copytree(base / "root", root := tmp_path / "root")
        more = ["--max-bad-fraction", "0.9"]
        content = json.loads((root / "annotations/instances_val.json").read_text())
        (root / "val" / content["images"][0]["file_name"]).write_bytes(b"x")
    words = [*SMALL[:1], "--data", str(root), "--output", str(run_dir), "--workers", "0", "--eval-only", *more]
    code, out, err = run(*words)
    assert code == 0, err
    assert "other data or values than the run's: wrote" in out
    after = snapshot(run_dir)
    assert {name: after[name] for name in before} == before
    added = {str(name) for name in set(after) - set(before)}
    listed = {"bad_images_val.txt"} if what == "data" else set()
    assert {Path(name).name for name in added} == {"results_other.json", "detections_other.json"} | listed
    assert json.loads((run_dir / "results_other.json").read_text())["warning"] == "half of the weights"


def test_evaluation_of_an_unfinished_run_leaves_it_unfinished(base: Path, tmp_path: Path) -> None:
    words = [*train_words(base, tmp_path / "run"), "--save-every", "2"]
    process = start(*words)
    checkpoints, deadline = tmp_path / "run" / "checkpoints", time.monotonic() + 200
    while not list(checkpoints.glob("step_*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    report = tmp_path / "run" / "load_report.json"
    report.write_text(json.dumps({"warning": "half of the weights"}))  # as if it had begun from such
    code, _, err = run(*words[:1], "--data", str(base / "root"), "--output", str(tmp_path / "run"), "--eval-only")
    assert code == 0, err
    (evaluated,) = (tmp_path / "run").glob("results_step_*.json")
    assert json.loads(evaluated.read_text())["warning"] == "half of the weights"
    report.unlink()
    for stem in ("results", "detections"):
        assert list((tmp_path / "run").glob(f"{stem}_step_*.json")) and not (tmp_path / "run" / f"{stem}.json").exists()
    assert run(*words, "--resume")[0] == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == (base / "done" / "results.json").read_bytes()


def test_predictions_are_drawn_for_a_picture_and_a_folder(base: Path, tmp_path: Path) -> None:
    words = [*SMALL[:1], "--output", str(base / "done"), "--workers", "0"]
    picture = tmp_path / "in" / "sub" / "one.JPG"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (31, 57), "red").save(picture, format="JPEG")
    Image.new("L", (90, 40), 3).save(tmp_path / "in" / "two.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    code, _, err = run(*words, "--predict", str(tmp_path / "in"))
    assert code == 0, err
    assert err.startswith("warning: unreadable image") and err.count("\n") == 1
    drawn = base / "done" / "predictions"
    assert Image.open(drawn / "sub" / "one.png").size == (31, 57)
    assert Image.open(drawn / "two.png").size == (90, 40)
    listed = json.loads((drawn / "predictions.json").read_text())
    assert set(listed) == {"sub/one.JPG", "two.png"}
    assert "bad.png cannot be read" in error_of(*words, "--predict", str(tmp_path / "in" / "bad.png"))
    alone = str(picture)
    code, _, err = run("det_configs/coco_vitdet_cascade_vit_small.py", *words[1:], "--predict", alone)
    assert code == 0, f"the run's recipe counts, which has no cascade: {err}"
    (tmp_path / "unreadable").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "unreadable" / name).write_bytes(b"no picture")
    assert "none of the 2 images can be read" in error_of(*words, "--predict", str(tmp_path / "unreadable"))


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_a_detector_learns_its_pictures_by_heart(tmp_path: Path, engine: str) -> None:
    """Pictures, targets, training and evaluation fit together: seen boxes are found, with the right class and mask."""
    write_root(tmp_path / "root")
    words = ["demo", "--data", str(tmp_path / "root"), "--val", _pair(tmp_path / "root"), "--weights", "none"]
    sizes = ["out_channels=32", "box_head_width=64", "mask_head_width=32", "mask_head_convs=1"]
    values = ["layer_decay=1", "anchor_sizes=8,16,24,32,48", "scale_range=1,1", "flip=0", "rpn_post_nms_train=50"]
    steps = ["--steps", "300", "--batch-size", "2", "--img-size", "64", "--lr", "1e-3", "--workers", "0"]
    code, _, err = run(*words, *sizes, *values, *steps, "--output", str(tmp_path / "run"), "--engine", engine)
    assert code == 0, err
    results: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["bbox"]["AP50"] > 60 and results["segm"]["AP50"] > 60, results


@pytest.mark.parametrize("engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def test_boxes_without_polygons_train_a_detector_of_boxes(tmp_path: Path, engine: str) -> None:
    """masks=false: results.json, detections and drawings hold boxes alone; "segmentation": [] was 12 of 12 dropped."""
    root = write_root(tmp_path / "root")
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        path.write_text(json.dumps(content))
    words = [*SMALL, "--data", str(root), "--output", str(tmp_path / "run"), "--weights", "none", "--steps", "2"]
    words += ["--engine", engine]
    error = error_of(*words)
    assert "12 with no polygon" in error and "masks=false trains a box-only detector" in error
    code, _, err = run(*words, "masks=false", "eval_every=1")
    assert code == 0, err
    done = tmp_path / "run"
    assert set(strict_json(done / "results.json")) == {"bbox"}
    assert "loss_mask" not in json.loads((done / "metrics.jsonl").read_text().splitlines()[0])
    detections = json.loads((done / "detections.json").read_text())
    assert detections and all("segmentation" not in detection for detection in detections)
    assert set(json.loads((done / "best.json").read_text())) == {"step", "bbox"}
    code, _, err = run(*words[:1], "--output", str(done), "--predict", str(root / "val"), "--workers", "0")
    assert code == 0, err
    assert Image.open(done / "predictions" / "000.png").size == (64, 48)


def test_annotations_that_become_no_target_are_an_error_before_the_first_step(inputs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(inputs / "root", tmp_path / "root")
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / 64 for value in annotation["bbox"]]
        annotation["segmentation"] = [[value / 64 for value in annotation["segmentation"][0]]]
    path.write_text(json.dumps(content))
    words = [*SMALL, "--data", str(root), "--output", str(tmp_path / "out"), "--weights", "none", "--steps", "2"]
    error = error_of(*words)
    assert "instances_train.json: 12 of 12 objects are less than a pixel at --img-size 64 (id 100: box" in error
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_doubts_are_a_warning_and_an_entry_of_the_report(inputs: Path, tmp_path: Path) -> None:
    root = shutil.copytree(inputs / "root", tmp_path / "root")
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:4]:
        annotation["iscrowd"] = 1
    content["images"][3]["file_name"] = "C:\\data\\003.png"
    path.write_text(json.dumps(content))
    words = [*SMALL, "--data", str(root), "--output", str(tmp_path / "out"), "--weights", "none", "--steps", "1"]
    code, _, err = run(*words)
    assert code == 0, err
    kind = "marked as a crowd (iscrowd=1) beside 8 that are not: no crowd is trained on"
    assert f"warning: train: 4 annotations doubtful: {kind} (first id 100)" in err
    assert "warning: train: 1 file name fits no file and was repaired: 'C:\\data\\003.png' is 003.png" in err
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"]
    assert report["annotations_doubtful"] == {kind: {"count": 4, "first_id": 100}}
    assert report["file_names_repaired"] == 1


def _pair(root: Path) -> str:
    return f"{root / 'annotations' / 'instances_train.json'}+{root / 'train'}"


def test_help_and_option_errors_come_without_torch(inputs: Path) -> None:
    code = "import sys; sys.argv = ['x', '--help']; sys.path.insert(0, 'tools'); import train_det\n"
    code += "try: train_det.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        ("train_det", ["demo", "--weights", "none", "--data", "GONE"], "--data GONE does not exist"),
        ("train_seg", ["demo", "--weights", "none", "--data", "tools", "stepss=3"], "unknown config key 'stepss'"),
        ("pretrain", ["--recipe", "tiny", "--data", "a.json"], "a COCO json: add --images ROOT"),
        ("pretrain", ["--recipe", "tiny", "--data", "tools", "--images", "tools"], "--images is for a COCO json only"),
        ("pretrain", ["--recipe", "tiny", "--data", "a.png"], "is a single image: give its folder"),
    ],
)
def test_option_errors_come_before_torch(tool: str, words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    words = [str(tmp_path / word) if word.startswith("a.") else word for word in words]
    code = (
        f"import sys; sys.path.insert(0, 'tools')\nfrom tools import {tool}\n"
        f"try: {tool}.main({[*words, '--output', str(tmp_path / 'out')]!r})\n"
        "except ValueError as error: print(error)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and message in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["det_configs/nuclei_tiney.py"], "did you mean 'det_configs/nuclei_tiny.py'"),
        (["demo", "--wieghts", "none"], "did you mean '--weights'"),
        (["demo", "rois_per_img=3"], "did you mean 'rois_per_image'"),
        (["demo", "optimizer.lr=1"], "unknown recipe value 'optimizer.lr': did you mean 'lr'?"),
        (["demo", "model-x[0] = 1"], "unknown recipe value 'model-x[0]'"),
        (["demo", "rois_per_image=x"], "expected an integer"),
        (["demo", "--engine", "torchvision", "cascade=true"], "cascade=true needs --engine detectron2"),
        (["demo", "window_size=14"], "window_size=14 and window_block_indexes=() go together"),
        (["demo", "--engine", "torchvison"], "did you mean 'torchvision'"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo"], "--weights FILE|none is needed"),
        (["demo", "--eval-only"], "holds no run"),
        (["demo", "--weights", "none"], "no train data"),
        (["demo", "--weights", "none", "--data", "NOWHERE"], "NOWHERE does not exist"),
        (["demo", "--weights", "GONE.safetensors", "--data", "ROOT"], "GONE.safetensors does not exist"),
        (["demo", "--weights", "none", "--data", "ROOT", "--batch-size", "7"], "data set of 6 images"),
        (["demo", "--weights", "ENCODER", "--data", "ROOT", "encoder=vit_small"], "embed_dim"),
        (["demo", "--weights", "none", "--data", "ROOT", "--resume"], "nothing to resume"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    inputs: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    names = {"ROOT": str(inputs / "root"), "ENCODER": str(inputs / "encoder.safetensors")}
    words = [names.get(word, word) for word in words]
    assert message in error_of(*words, "--output", str(tmp_path / "out"), "--workers", "0")
    assert not (tmp_path / "out").exists()
