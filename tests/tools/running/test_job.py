"""What a job is told, and how it is told apart from another."""

from __future__ import annotations

from pathlib import Path

from tools.running.job import Job


def test_what_decides_the_result_is_told_apart(tmp_path: Path) -> None:
    argv = ("--data", "--here", "--lr", "1", "--workers", "3", "--seed", "0", "--weights", "w")
    assert Job("a", "train_det.py", argv, tmp_path, "done").identity() == ["train_det.py", "--lr", "1", "--seed", "0"]


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
