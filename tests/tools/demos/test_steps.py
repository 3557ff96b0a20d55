"""The demo's processes: exit codes and error lines are passed on, signals arrive once, no step is run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tools.demos import steps as demo_steps
from tools.demos.steps import StepError, Steps, run_process
from tools.finetuning import plots

STUBBORN = """
import signal, sys, time
count = 0
def stop(number, frame):
    global count
    count += 1
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
open(sys.argv[1], "w").write("ready")
while not count: time.sleep(0.02)
time.sleep(0.3)
sys.exit(128 + signal.SIGTERM if count == 1 else 99)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_error_line_is_kept_and_the_rest_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; sys.stderr.write('warning: odd\\nerror: --lr 0 is wrong\\n'); print('hello'); sys.exit(2)"
    assert run_process(python(code)) == (2, "error: --lr 0 is wrong")
    shown = capfd.readouterr()
    assert shown.err == "warning: odd\n"
    assert shown.out == "hello\n"
    assert run_process(python("pass")) == (0, None)
    assert run_process(python("import os; os.kill(os.getpid(), 9)")) == (128 + 9, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_step_once_and_its_end_is_awaited(number: signal.Signals, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    before = signal.getsignal(number)
    assert run_process(python(STUBBORN, str(ready))) == (143, None)
    sender.join()
    assert signal.getsignal(number) is before


def test_steps_continue_and_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def fake(command: list[str]) -> tuple[int, str | None]:
        calls.append(command)
        folder = tmp_path / "train"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        if "--resume" in command:
            (folder / "done").write_text("")
            return 0, None
        return (2, "error: no") if len(calls) == 1 else (143, None)

    monkeypatch.setattr(demo_steps, "run_process", fake)
    with pytest.raises(StepError) as failed:
        Steps(tmp_path).run("train", "done", "train_det.py", "--lr", "1")
    assert (failed.value.code, failed.value.line) == (2, "error: no")
    assert "--resume" not in calls[0]
    Steps(tmp_path).run("train", "done", "train_det.py", "--lr", "1")
    assert calls[1][-3:] == ["--output", str(tmp_path / "train"), "--resume"]
    assert Steps(tmp_path).run("train", "done", "train_det.py", "--lr", "1") == tmp_path / "train"
    assert len(calls) == 2
    assert set(json.loads((tmp_path / "seconds.json").read_text())) == {"train"}


def test_a_step_that_dies_without_a_word_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_steps, "run_process", lambda command: (137, None))
    with pytest.raises(StepError, match=r"error: tools/train_seg.py ended with exit code 137"):
        Steps(tmp_path).run("seg", "done", "train_seg.py")
    monkeypatch.setattr(demo_steps, "run_process", lambda command: (130, "error: half a word"))
    with pytest.raises(StepError) as stopped:
        Steps(tmp_path).run("seg", "done", "train_seg.py")
    assert (stopped.value.code, stopped.value.line) == (130, None)  # stopped on purpose: no error


def test_curves_and_tables(tmp_path: Path) -> None:
    lines = ['{"step": 10, "loss": 2.0}', '{"step": 20, "loss": null}', '{"step": 30, "loss": 1.0}', '{"step": 4']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert plots.curve(plots.read_metrics(tmp_path / "metrics.jsonl"), "loss") == ([10, 30], [2.0, 1.0])
    assert plots.read_metrics(tmp_path / "nothing.jsonl") == []
    assert plots.show(None) == "undefined"
    assert plots.markdown_table(["a", "b"], [["x", "1.0"]]) == "| a | b |\n| :--- | ---: |\n| x | 1.0 |\n"
    plots.save_curves({"loss": {"one": ([1, 2], [2.0, 1.0])}, "empty": {}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/demo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_wrong_input_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    missing = demo("--data", str(tmp_path / "nothing"), "--output", str(tmp_path / "out"))
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert missing.stderr.startswith(f"error: --data {tmp_path / 'nothing'} does not exist")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_demo_on_a_small_folder(tmp_path: Path) -> None:
    from tools.demo_data import make_demo_data

    data = make_demo_data(tmp_path / "data", 10, 3, 1, img_size=96)
    budget = ["--pretrain-steps", "2", "--det-steps", "2", "--seg-steps", "2", "--workers", "0"]
    arguments = ["--data", str(data / "coco"), "--output", str(tmp_path / "out"), *budget]
    done = demo(*arguments)
    assert done.returncode == 0, done.stderr
    assert "| SplitMask |" in (tmp_path / "out" / "table.md").read_text()
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert pictures == {"loss_curves.png", "words.png", "detections.png", "segmentations.png"}
    again = demo(*arguments)
    assert again.returncode == 0
    assert "$ python" not in again.stdout  # nothing is trained a second time
    other = demo(*arguments, "--seed", "1")
    assert other.returncode == 2
    assert other.stderr.startswith(
        f"error: {tmp_path / 'out'} holds a run with other settings: --seed was 0 and is now 1"
    )
