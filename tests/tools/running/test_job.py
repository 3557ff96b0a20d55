"""What a job is told, how it is told apart from another, and the pictures of a prediction job."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from tools.running.job import Job
from tools.running.pictures import copy_numbered, drawn, prediction_job


def test_what_decides_the_result_is_told_apart(tmp_path: Path) -> None:
    argv = ("--data", "--here", "--lr", "1", "--workers", "3", "--seed", "0", "--weights", "w")
    assert Job("a", "train_det.py", argv, tmp_path, "done").identity() == ["train_det.py", "--lr", "1", "--seed", "0"]
    joined = ("--workers=3", "--lr=1", "--data=here", "workers=3")
    assert Job("a", "train_det.py", joined, tmp_path, "done").identity() == ["train_det.py", "--lr=1", "workers=3"]


def test_weights_that_were_replaced_are_told(tmp_path: Path) -> None:
    weights, folder = tmp_path / "encoder.safetensors", tmp_path / "run"
    job = Job("a", "train_det.py", ("--lr", "1", "--weights", str(weights)), folder, "done")
    none = Job("a", "train_det.py", ("--weights", "none"), folder, "done")
    folder.mkdir()
    assert job.replaced_weights() is None, "nothing was made"
    (folder / "config.json").write_text(json.dumps({"--weights": hashlib.sha256(b"one").hexdigest()}))
    assert job.replaced_weights() is None, "they are made later"
    weights.write_bytes(b"one")
    assert job.replaced_weights() is None
    weights.write_bytes(b"two")
    os.utime(weights, ns=(0, 0))  # the clock may be coarse
    assert job.replaced_weights() == weights and none.replaced_weights() == Path("none")
    drawing = prediction_job("det", "train_det.py", ("demo",), job.folder, tmp_path / "pictures", 3)
    assert drawing.replaced_weights() is None, "it names none: those of the run are meant"
    (folder / "config.json").write_text('{"--weights": "none"}')
    assert job.replaced_weights() == weights and none.replaced_weights() is None
    assert Job("a", "pretrain.py", (), folder, "done").replaced_weights() is None
    for text in ("{}", "[]", "{"):
        (folder / "config.json").write_text(text)
        assert job.replaced_weights() is None and none.replaced_weights() is None


def test_a_source_that_was_replaced_is_told(tmp_path: Path) -> None:
    source = tmp_path / "deit.pth"
    source.write_bytes(b"one")
    job = Job("a", "convert.py", (str(source), str(tmp_path / "made.safetensors")), tmp_path, "made.safetensors")
    assert job.replaced_weights() is None, "nothing was made"
    (tmp_path / "made.safetensors.report.json").write_text(json.dumps({"sha256": hashlib.sha256(b"one").hexdigest()}))
    assert job.replaced_weights() is None
    assert replace(job, argv=(str(tmp_path / "other.pth"), job.argv[1])).replaced_weights() is None, "gone, or moved"
    source.write_bytes(b"two")
    os.utime(source, ns=(0, 0))
    assert job.replaced_weights() == source


def test_what_is_begun_continues_and_what_is_done_does_not(tmp_path: Path) -> None:
    job = Job("a", "train_det.py", ("--lr", "1"), tmp_path, "predictions/3.*")
    assert not job.started and job.full_argv() == ["--lr", "1", "--output", str(tmp_path)]
    (tmp_path / "config.json").write_text("{}")
    assert job.started and job.full_argv()[-1] == "--resume"
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "3.png").touch()
    assert job.done and "--resume" not in job.full_argv()


def test_only_trainings_run_under_torchrun(tmp_path: Path) -> None:
    training = Job("a", "train_det.py", (), tmp_path, "done")
    assert training.shown(4).startswith("torchrun --standalone --nproc-per-node=4 tools/train_det.py ")
    drawing = Job("b", "train_det.py", ("--predict", "some pictures"), tmp_path, "done")
    assert drawing.shown(4).startswith("python tools/train_det.py --predict 'some pictures' ")


def test_pictures_of_one_name_are_kept_apart_and_drawn_once(tmp_path: Path) -> None:
    sources = [tmp_path / "a" / "x.JPG", tmp_path / "b" / "x.png"]
    for number, source in enumerate(sources):
        source.parent.mkdir()
        source.write_bytes(bytes([number]))
    files = copy_numbered(sources, tmp_path / "pictures")
    assert [file.name for file in files] == ["0.jpg", "1.png"]
    assert [file.read_bytes() for file in files] == [b"\0", b"\1"]
    run = tmp_path / "run"
    job = prediction_job("run", "train_det.py", ("c.py",), run, tmp_path / "pictures", len(files))
    assert job.argv == ("c.py", "--predict", str(tmp_path / "pictures")) and job.needs == ("run",)
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / "0.png").touch()
    assert not job.done, "interrupted half-way"
    (run / "predictions" / "1.png").touch()
    assert job.done and drawn(run, files) == [run / "predictions" / "0.png", run / "predictions" / "1.png"]
