"""The rehearsal of a plan with jobs that are only pretended: memory, missing things, going on, the table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.in_process import run_tool
from tests.helpers.plans import check
from tools import reproduce
from tools.reproduction.rehearse import TABLE
from tools.reproduction.sets import Places
from tools.running.executor import Executor, JobError
from tools.running.job import Job

ENTRY = {
    "batch_size": 16, "accumulate": 1, "total_steps": 9, "save_every": 1000, "num_evaluations": 2, "steps": 3,
    "setup_seconds": 5.0, "step_seconds": 0.5, "first_step_seconds": 1.0, "save_seconds": 2.0,
    "checkpoint_bytes": 3 * 10**9, "evaluated_images": 4, "images_per_evaluation": 5000, "evaluation_seconds": 8.0,
    "peak_memory_bytes": 40 * 10**9,
}  # fmt: skip


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for name in ("train2017", "val2017", "annotations"):
        (tmp_path / "coco" / name).mkdir(parents=True)
    return tmp_path / "coco"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Returns the jobs that are asked for; each writes its rehearsal."""
    return pretend(monkeypatch, lambda job: None)


def pretend(monkeypatch: pytest.MonkeyPatch, fail: Callable[[Job], str | None]) -> list[Job]:
    ran: list[Job] = []

    def run(self: Executor, jobs: list[Job]) -> None:
        (job,) = jobs
        ran.append(job)
        error = fail(job)
        self._note(job, 1.0)
        if error is not None:
            raise JobError(2, f"error: {error}")
        job.folder.mkdir(parents=True, exist_ok=True)
        parts = re.findall(r"accumulate[ =](\d+)", " ".join(job.argv))
        entry = {**ENTRY, "accumulate": int(parts[0]) if parts else 1}
        (job.folder / "rehearsal.json").write_text(json.dumps(entry))
        if job.tool == "pretrain.py":
            (job.folder / "rehearsal.safetensors").write_bytes(b"x")

    monkeypatch.setattr(Executor, "run", run)
    return ran


def argv(coco: Path, row: str, *more: str) -> list[str]:
    return [f"coco/{row}", "--data", str(coco), "--output", str(coco.parent / "out"), "--rehearse", *more]


def test_a_row_from_encoder_to_table(coco: Path, ran: list[Job]) -> None:
    done = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco", "--rehearse-batch", "4"))
    assert done.returncode == 0, done.stderr
    out = coco.parent / "out"
    detector = ran[1]
    encoder = out / "pretrain/coco_splitmask_vit_small/rehearsal/rehearsal.safetensors"
    assert f"--weights {encoder}" in " ".join(detector.argv)
    for job in ran:
        check(job)
        assert " ".join(job.argv).endswith("--rehearse --batch-size 4") and job.folder.name == "rehearsal"
    assert not encoder.exists()  # what is left are timings
    table = (out / TABLE).read_text()
    # Detector: 36 epochs of 118,287 images in steps of 16, two evaluations of 5,000 images at 2 s.
    seconds = 5 + 36 * (118_287 // 16) * 0.5 + 267 * 2 + 2 * 5000 * 2
    hours, minutes = divmod(round(seconds) // 60, 60)
    assert f"| 16 | 0.50 | 40.0 | 3.00 | 2.00 | {hours} h {minutes:02d} min | ready |" in table
    assert "16 of 2,048" in table and "2 of 2 steps are ready" in table and "missing" not in table
    assert table in done.stdout
    # The same command makes nothing again; another does.
    again = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco", "--rehearse-batch", "4"))
    assert again.returncode == 0 and len(ran) == 2
    run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco", "--rehearse-batch", "8"))
    assert len(ran) == 4


def test_a_batch_that_does_not_fit_is_divided(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> str | None:
        fits = {"accumulate=4", "--accumulate 4"}
        return None if any(" ".join(job.argv).endswith(text) for text in fits) else "out of memory: use a smaller"

    monkeypatch.setattr(reproduce, "_has_gpu", lambda: True)
    ran = pretend(monkeypatch, fail)
    done = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco"))
    assert done.returncode == 0, done.stderr
    assert [job.argv[-1] for job in ran] == ["--rehearse", "2", "4", "--rehearse", "accumulate=2", "accumulate=4"]
    assert "in 4 parts" in done.stdout and "2 of 2 steps are ready" in done.stdout
    assert '| ready with --pretrain-options "--accumulate 4" |' in done.stdout
    assert '| ready with --train-det-options "accumulate=4" |' in done.stdout
    again = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco"))
    assert again.returncode == 0 and len(ran) == 6, "what did fit is known"
    ran.clear()
    other = ["--output", str(coco.parent / "eight"), "--gpus", "8"]
    more = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco", *other))
    # 16 images on 8 GPUs are 2 each: in two parts, no more.
    assert [job.argv[-1] for job in ran if job.tool == "train_det.py"] == ["--rehearse", "accumulate=2"]
    assert "out of memory: use a smaller" in more.stdout


def test_what_is_missing_is_named_and_the_rest_is_rehearsed(coco: Path, ran: list[Job]) -> None:
    done = run_tool(reproduce.main, *argv(coco, "vit_small_deit", "--rehearse-batch", "2"))
    assert done.returncode == 0, done.stderr
    (detector,) = ran  # from nothing: its time and memory do not depend on the weights
    assert "--weights none" in " ".join(detector.argv)
    assert "0 of 2 steps are ready" in done.stdout
    assert "- DEIT's published vit_small: give --weights deit_small=FILE" in done.stdout
    assert "| convert/deit_small first |" in done.stdout and "- convert/deit_small first" not in done.stdout
    gone = run_tool(
        reproduce.main, "coco/vit_small_random", "--data", "x", "--output", str(coco.parent / "o"), "--rehearse"
    )
    assert gone.returncode == 0 and len(ran) == 1
    assert "- data set coco: x is not a folder" in gone.stdout


def test_a_classifier_is_rehearsed_with_its_rows_encoder_although_the_weights_are_missing(
    coco: Path, tmp_path: Path, ran: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "missing", lambda self, name: None)
    places = [f"{name}={coco}" for name in ("inat18", "inat19", "food101", "cars", "domainnet")]
    words = [word for place in places for word in ("--data", place)]
    words += ["--output", str(tmp_path / "out"), "--rehearse", "--rehearse-batch", "2"]
    done = run_tool(reproduce.main, "finetuning/vit_base_deit", *words)
    assert done.returncode == 0, done.stderr
    assert {job.tool for job in ran} == {"train_cls.py"} and len(ran) == 7
    assert all("--weights none" in " ".join(job.argv) for job in ran)
    assert all(job.argv.count("--model") == 1 and "--model vit_base" in " ".join(job.argv) for job in ran)


def test_a_failure_is_a_line_of_the_table_and_a_signal_ends_it(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda job: "no such image" if job.tool == "pretrain.py" else None)
    done = run_tool(reproduce.main, *argv(coco, "vit_small_splitmask_coco", "--rehearse-batch", "2"))
    assert done.returncode == 0
    assert "| no such image |" in done.stdout and "| pretrain/coco_splitmask_vit_small first |" in done.stdout

    def interrupt(self: Executor, jobs: list[Job]) -> None:
        raise JobError(130, None)

    monkeypatch.setattr(Executor, "run", interrupt)
    stopped = run_tool(reproduce.main, *argv(coco, "vit_base_random", "--rehearse-batch", "2"))
    assert stopped.returncode == 130 and "the same command continues from here" in stopped.stdout
