"""Table and study from plan to end, with jobs that are only pretended; what is announced before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tests.helpers.in_process import run_tool
from tests.helpers.run_folders import write_detection
from tools import reproduce
from tools.reproduction import make
from tools.reproduction.make import make_table, needed_sets, table_estimate
from tools.reproduction.paper import find_table
from tools.reproduction.plan import Planner
from tools.reproduction.sets import Places
from tools.reproduction.study import HEADS, Study
from tools.running.executor import Executor
from tools.running.job import Job


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
    # 2 data sets, 3 seeds, 8 fine-tunings and 5 pre-trainings, and 2 rows fine-tuned on 4 shares of the labels
    assert "126 of 126 jobs to do" in done.stdout
    assert "row imagenet (DeiT-Ti, ImageNet's labels): skipped, --weights imagenet=FILE" in done.stdout
    assert "as many more steps as fit in the time of a pre-training" in done.stdout
    one = run_tool(reproduce.main, *argv, "--rows", "random,full", "--seeds", "1", "--labels", "1")
    assert "6 of 6 jobs to do" in one.stdout


def test_the_cpu_size_orders_the_methods_on_camvid(data: Path, tmp_path: Path) -> None:
    argv = ["small", "--data", str(data), "--size", "cpu", "--output", str(tmp_path / "out"), "--dry-run"]
    done = run_tool(reproduce.main, *argv, "--labels", "1", "--seeds", "1")
    # nuclei: two rows and a pre-training; CamVid: eight rows and five pre-trainings
    assert "16 of 16 jobs to do" in done.stdout
    assert "inpaint/camvid/seed0/train_seg" in done.stdout and "inpaint/nuclei" not in done.stdout
    assert "in the time of a pre-training: 2857 on camvid\n" in done.stdout
    asked = run_tool(reproduce.main, *argv, "--labels", "1", "--seeds", "1", "--rows", "inpaint")
    assert "4 of 4 jobs to do" in asked.stdout, "a row that is asked for runs on both sets"
    given = run_tool(
        reproduce.main, *argv, "--sets", "nuclei", "--labels", "1", "--seeds", "1", "--weights", "imagenet=a.pth"
    )
    assert "5 of 5 jobs to do" in given.stdout and "skipped" not in given.stdout


def test_too_few_pictures_are_told_before_anything_runs(data: Path, tmp_path: Path) -> None:
    study = Study("cpu", data, tmp_path / "out", dict.fromkeys(("nuclei", "camvid"), ("random",)), 1)
    with pytest.raises(ValueError, match="holds 0 images: the study shows 4 that can be read"):
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
    study = Study("cpu", data, tmp_path / "out", {"camvid": ("random",)}, 1)
    assert make.make_study(study, 1, dry_run=False) == 0
    assert "| random init | - | - | 12.5 (1) | - |" in (tmp_path / "out" / "table.md").read_text()
    assert "| random init |" in capsys.readouterr().out


def test_lists_of_images_are_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = find_table("transfer")
    row = table.row("food101")
    for folder in ("inat19/annotations", "inat18/annotations", "cars/cars_train", "food101/meta", "food101/images/pie"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for year in ("18", "19"):
        (tmp_path / f"data/inat{year}/train20{year}.json").touch()
    (tmp_path / "data/food101/meta/train.txt").write_text("pie/1\n")

    def make() -> int:
        places = Places([str(tmp_path / "data")], needed_sets([row]))
        return make_table(table, [row], Planner(tmp_path / "out", places), 1, 1, None, dry_run=False)

    with pytest.raises(UserError, match=r"1.jpg does not exist \(1 of 1\)"):
        make()
    assert not (tmp_path / "out").exists()
    seen: list[str] = []
    listed = tmp_path / "out" / "lists" / "food101.txt"

    def pretend(self: Executor, jobs: list) -> None:
        seen.append(listed.read_text())
        write_detection(tmp_path / "out" / "det", "coco_3x_vit_small_random", (38.0,) * 6)

    monkeypatch.setattr(Executor, "run", pretend)
    image = tmp_path / "data/food101/images/pie/1.jpg"
    image.touch()
    assert make() == 0
    assert seen == [f"{image}\n"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Table 3" in text and "## ViT-S pre-trained on one set" in text
    assert "vit_small_random,box AP,38.3,38.0,,1" in (tmp_path / "out" / "table.csv").read_text()


def test_the_estimate_counts_what_is_left(tmp_path: Path) -> None:
    jobs = [
        Job("a", "pretrain.py", (), tmp_path / "a", "done", operations=7.2e15, disk=2e9),
        Job("b", "train_det.py", (), tmp_path / "b", "done", operations=3.6e15, disk=1e9),
    ]
    lines = table_estimate(jobs, tmp_path, tflops=1.0)
    assert lines[0] == "2 of 2 jobs to do"
    assert lines[1].startswith(
        "GPU hours: about 3.0 (pretrain 2.0, train_det 1.0), from counted operations at --tflops 1 "
    )
    assert lines[2].startswith("disk: about 3.0 GB")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "done").write_text("")
    assert table_estimate(jobs, tmp_path, tflops=1.0)[1].startswith("GPU hours: about 1.0 (train_det 1.0)")
    assert "34.0 hours on 16 GPUs" in table_estimate(jobs, tmp_path, tflops=None)[1]
    probes = [
        Job(name, "probe.py", (), tmp_path / name, "done", scratch=size) for name, size in (("d", 1e9), ("e", 2e9))
    ]
    assert table_estimate(probes, tmp_path, None)[2].startswith("disk: about 2.0 GB"), "one runs after the other"
    huge = [Job("c", "pretrain.py", (), tmp_path / "c", "done", disk=1e18)]
    assert "NOT ENOUGH" in table_estimate(huge, tmp_path / "not" / "there", None)[2]
