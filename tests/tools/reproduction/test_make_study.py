"""The study from plan to end, with jobs that are only pretended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.in_process import run_tool
from tools import reproduce
from tools.reproduction import make
from tools.reproduction.study import HEADS, Study
from tools.running.executor import Executor


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in HEADS:
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def test_dry_run_of_the_study(data: Path, tmp_path: Path) -> None:
    argv = ["small", "--data", str(data), "--size", "gpu", "--output", str(tmp_path / "out"), "--dry-run"]
    done = run_tool(reproduce.main, *argv)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    assert "72 of 72 jobs to do" in done.stdout  # 2 data sets, 3 seeds, 7 fine-tunings and 5 pre-trainings
    assert "as many more steps as fit in the time of a pre-training" in done.stdout
    one = run_tool(reproduce.main, *argv, "--rows", "random,full", "--seeds", "1")
    assert "6 of 6 jobs to do" in one.stdout


def test_too_few_pictures_are_told_before_anything_runs(data: Path, tmp_path: Path) -> None:
    study = Study("cpu", data, tmp_path / "out", ("random",), 1)
    with pytest.raises(ValueError, match="holds 0 images: the study shows 4 of them"):
        make.make_study(study, 1, dry_run=False)
    assert not (tmp_path / "out").exists()


def test_what_ran_is_reported(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def pretend(self: Executor, jobs: list) -> None:
        for job in jobs:
            if "--predict" not in job.argv:
                job.folder.mkdir(parents=True)
                (job.folder / "results.json").write_text(json.dumps({"mIoU": 12.5}))

    monkeypatch.setattr(Executor, "run", pretend)
    monkeypatch.setattr(make.study_report, "save_grids", lambda study: None)
    monkeypatch.setattr(make.study_report, "choose_pictures", lambda study: (tmp_path / "out/pictures").mkdir())
    study = Study("cpu", data, tmp_path / "out", ("random",), 1, sets=("camvid",))
    assert make.make_study(study, 1, dry_run=False) == 0
    assert "| random init | - | - | 12.5 (1) | - |" in (tmp_path / "out" / "table.md").read_text()
    assert "| random init |" in capsys.readouterr().out
