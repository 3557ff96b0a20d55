"""Runs with data workers that end before their time: one error line that names the file, and nobody stays behind."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.helpers.small_runs import command, error_of, make_inputs, processes_with, skip_without_its_library, start

TRAINERS = [
    "pretrain",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("train_det", "train_seg", "train_cls")),
]
LEAVES_IN = 10.0  # 5 s on a quiet machine, which tests that run side by side are not


def wait_for_a_step(folder: Path, process, seconds: float = 100.0) -> None:
    deadline = time.monotonic() + seconds
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def break_images(data: Path) -> None:
    for path in data.rglob("*"):
        if path.suffix in (".png", ".jpg") and "annotations" not in path.parts:
            beside = path.with_name("beside")
            beside.write_bytes(b"garbage")
            beside.replace(path)  # a worker finds the one or the other


def gone_within(mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_with(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def end_of(process, mark: str) -> str:
    """Returns stderr; fails where anybody is there 5 s after the error line."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("error:"):
            break
    assert gone_within(mark, LEAVES_IN), [*lines, processes_with(mark)]
    return "".join([*lines, *process.stderr])


def error_after_images_break(process: subprocess.Popen[str], data: Path, run: Path) -> str:
    """Returns the error line of a run whose images break once it has made a step."""
    try:
        wait_for_a_step(run, process)
        break_images(data)
        # What follows is torchrun's own report of a process that failed, its traceback included.
        ours, _, _ = end_of(process, str(run)).partition("torch/distributed/elastic")
        return error_of(ours)
    finally:
        process.kill()


@pytest.mark.parametrize("tool", TRAINERS)
def test_an_image_that_breaks_during_the_run_is_named_and_the_tool_leaves(tool: str, tmp_path: Path) -> None:
    skip_without_its_library(tool)
    data, run = make_inputs(tool, tmp_path / "data"), tmp_path / "run"
    process = start(command(tool, data, run, "--workers", "2", "--steps", "5000"))
    error = error_after_images_break(process, data, run)
    assert process.wait() == 2
    assert str(data) in error and "could be read when the run started and cannot be now" in error
    assert "Caught" not in error and "Original" not in error


def test_a_run_whose_terminal_is_closed_saves(tmp_path: Path) -> None:
    data, run = make_inputs("pretrain", tmp_path / "data"), tmp_path / "run"
    words = command("pretrain", data, run, "--workers", "1", "--steps", "5000", "--save-every", "5000")
    try:
        terminal, its_end = pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal here: {error}")
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), its_end)
    controlled = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
    process = start(words, **ends, **controlled, text=False)
    os.close(its_end)
    try:
        metrics = run / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text()):
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 65536)  # one that is full would stop the run
        os.close(terminal)  # the kernel says so to the run and its worker
        assert process.wait(60) == 143 and gone_within(str(run), LEAVES_IN)
    finally:
        process.kill()
    assert len(list((run / "checkpoints").glob("step_*.safetensors"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_no_worker_outlives_a_tool_that_is_killed_or_interrupted(number: int, code: int, tmp_path: Path) -> None:
    data, run = make_inputs("pretrain", tmp_path / "data"), tmp_path / "run"
    words = command("pretrain", data, run, "--workers", "2", "--steps", "5000")
    process = start(words, start_new_session=True)
    try:
        wait_for_a_step(run, process)
        assert len(processes_with(str(run))) >= 3
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        stderr = process.stderr.read()  # whoever holds the pipe is still there
        assert process.wait(5) == code and gone_within(str(run), 5), stderr
    finally:
        process.kill()
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_under_torchrun_all_are_gone_after_the_one_error_line(tmp_path: Path) -> None:
    data, run = make_inputs("pretrain", tmp_path / "data"), tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29551"]
    words = command("pretrain", data, run, "--workers", "1", "--steps", "5000", "--device", "cpu")
    error = error_after_images_break(start([sys.executable, *torchrun, *words[1:]]), data, run)
    assert "could be read when the run started and cannot be now" in error
