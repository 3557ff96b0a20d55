"""tools/reproduce.py: the plan in words, running and continuing with fake steps, signals, errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tests.helpers.paths import ROOT
from tools import reproduce
from tools.demos.steps import StepError
from tools.reproduction import executor
from tools.reproduction.announce import table_estimate
from tools.reproduction.executor import Executor
from tools.reproduction.progress import duration
from tools.reproduction.step import Step, last_update

# A tool that writes what it was told, and does what its first word says.
FAKE = """
import json, os, signal, sys, time
words = sys.argv[1:]
out = words[words.index("--output") + 1]
os.makedirs(out, exist_ok=True)
open(out + "/config.json", "w").write("{}")
with open(out + "/calls", "a") as file: file.write(json.dumps(words) + "\\n")
with open(out + "/times", "a") as file: file.write(f"{time.time()} ")
if words[0] == "fail" and not os.path.exists(out + "/mended"):
    print("hello"); sys.exit(sys.stderr.write("warning: odd\\nerror: --lr 0 is wrong\\n") and 2)
if words[0] == "die": os.kill(os.getpid(), 9)
if words[0] == "lazy": sys.exit(0)
if words[0] == "wait" and "--resume" not in words:
    def stop(number, frame):
        open(out + "/saved", "w").write(str(number)); sys.exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
    open(out + "/ready", "w").write("")
    time.sleep(60)
time.sleep(float(words[1]) if len(words) > 1 and words[1].replace(".", "").isdigit() else 0)
with open(out + "/times", "a") as file: file.write(f"{time.time()} ")
open(out + "/done", "w").write("")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "root" / "tools").mkdir(parents=True)
    (tmp_path / "root" / "tools" / "fake.py").write_text(FAKE)
    monkeypatch.setattr(executor, "ROOT", tmp_path / "root")
    return tmp_path / "out"


def step(output: Path, name: str, *words: str, needs: tuple[str, ...] = ()) -> Step:
    return Step(name, "fake.py", words, output / name, "done", needs, seconds=1.0)


def calls(output: Path, name: str) -> list[list[str]]:
    return [json.loads(line) for line in (output / name / "calls").read_text().splitlines()]


def test_steps_run_once_in_order_and_leave_logs(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step(fake, "b/one", "ok"), step(fake, "a", "ok", "--weights", "w", needs=("b/one",))]
    Executor(fake).run(steps)
    assert calls(fake, "a") == [["ok", "--weights", "w", "--output", str(fake / "a")]]
    first, second = ((fake / name / "times").read_text().split() for name in ("b/one", "a"))
    assert float(first[1]) <= float(second[0])
    assert (fake / "logs" / "b__one.log").read_text().startswith("$ python tools/fake.py ok")
    shown = capsys.readouterr().out
    assert "b/one: finished in" in shown and "(2 of 2)" in shown
    Executor(fake).run(steps)
    assert len(calls(fake, "a")) == 1
    assert json.loads((fake / "steps.json").read_text())["a"]["identity"] == ["fake.py", "ok"]


def test_jobs_run_side_by_side(fake: Path) -> None:
    steps = [step(fake, name, "ok", "0.8") for name in ("a", "b")]
    steps.append(step(fake, "c", "ok", needs=("a", "b")))
    Executor(fake, jobs=2, threads=1).run(steps)
    (a0, a1), (b0, b1), (c0, _) = (map(float, (fake / name / "times").read_text().split()) for name in "abc")
    assert max(a0, b0) < min(a1, b1), "at the same time"
    assert c0 >= max(a1, b1)


def test_a_failed_step_stops_the_plan_with_its_own_line_and_goes_on_later(fake: Path) -> None:
    steps = [step(fake, "a", "ok"), step(fake, "b", "fail", needs=("a",)), step(fake, "c", "ok", needs=("b",))]
    with pytest.raises(StepError) as failed:
        Executor(fake).run(steps)
    assert (failed.value.code, failed.value.line) == (2, "error: --lr 0 is wrong")
    assert "hello\nwarning: odd\n" in (fake / "logs" / "b.log").read_text()
    assert not (fake / "c").exists()
    (fake / "b" / "mended").write_text("")
    Executor(fake).run(steps)
    assert len(calls(fake, "a")) == 1
    assert [words[-1] for words in calls(fake, "b")] == [str(fake / "b"), "--resume"]
    assert (fake / "c" / "done").exists()


def test_the_others_are_asked_to_save_when_one_fails(fake: Path) -> None:
    steps = [step(fake, "a", "wait"), step(fake, "b", "fail", "0")]
    (fake / "b").mkdir(parents=True)

    def fail_when_ready() -> None:
        while not (fake / "a" / "ready").exists():
            time.sleep(0.02)

    steps[1] = step(fake, "b", "fail", needs=("first",))
    steps.insert(0, step(fake, "first", "ok", "1.5"))
    with pytest.raises(StepError, match="error: --lr 0 is wrong"):
        Executor(fake, jobs=2).run(steps)
    assert (fake / "a" / "saved").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize(("word", "message"), [("die", "ended with exit code 137"), ("lazy", "ended without done")])
def test_a_step_that_says_nothing_is_named(fake: Path, word: str, message: str) -> None:
    with pytest.raises(StepError) as failed:
        Executor(fake).run([step(fake, "x", word)])
    assert failed.value.code == 2
    assert re.fullmatch(rf"error: x: tools/fake.py {message}: see .*x\.log", failed.value.line or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_steps_and_end_the_plan(fake: Path, number: signal.Signals) -> None:
    steps = [step(fake, "a", "wait"), step(fake, "b", "wait"), step(fake, "c", "ok")]

    def send() -> None:
        while not all((fake / name / "ready").exists() for name in "ab"):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StepError) as stopped:
        Executor(fake, jobs=2).run(steps)
    sender.join()
    assert (stopped.value.code, stopped.value.line) == (128 + number, None)
    assert [(fake / name / "saved").read_text() for name in "ab"] == [str(int(number))] * 2
    assert not (fake / "c").exists()
    assert signal.getsignal(number) is before
    Executor(fake).run(steps)
    assert all((fake / name / "done").exists() for name in "abc")


def test_other_options_for_a_step_that_exists_are_refused(fake: Path) -> None:
    Executor(fake).run([step(fake, "a", "ok", "--steps", "5", "--data", "here")])
    Executor(fake).run([step(fake, "a", "ok", "--steps", "5", "--data", "there")])  # moved data are the same data
    with pytest.raises(UserError, match=r"other options \(5\) than those of now \(6\)"):
        Executor(fake).run([step(fake, "a", "ok", "--steps", "6", "--data", "here")])


def test_the_estimate_counts_what_is_left(tmp_path: Path) -> None:
    steps = [
        Step("a", "pretrain.py", (), tmp_path / "a", "done", operations=7.2e15, disk=2e9),
        Step("b", "train_det.py", (), tmp_path / "b", "done", operations=3.6e15, disk=1e9),
    ]
    lines = table_estimate(steps, tmp_path, tflops=1.0)
    assert lines[0] == "2 of 2 steps to do"
    assert lines[1].startswith(
        "GPU hours: about 3.0 (pretrain 2.0, train_det 1.0), from counted operations at --tflops 1 "
    )
    assert lines[2].startswith("disk: about 3.0 GB")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "done").write_text("")
    assert table_estimate(steps, tmp_path, tflops=1.0)[1].startswith("GPU hours: about 1.0 (train_det 1.0)")
    assert "34.0 hours on 16 GPUs" in table_estimate(steps, tmp_path, tflops=None)[1]
    probes = [
        Step(name, "probe.py", (), tmp_path / name, "done", scratch=size) for name, size in (("d", 1e9), ("e", 2e9))
    ]
    assert table_estimate(probes, tmp_path, None)[2].startswith("disk: about 2.0 GB"), "one runs after the other"
    huge = [Step("c", "pretrain.py", (), tmp_path / "c", "done", disk=1e18)]
    assert "NOT ENOUGH" in table_estimate(huge, tmp_path / "not" / "there", None)[2]


def test_durations_and_progress(tmp_path: Path) -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7260)] == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]
    assert last_update(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    assert last_update(tmp_path) == 20


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/reproduce.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_dry_run_shows_the_plan_and_makes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = tool("coco/vit_small_splitmask_coco", "--data", "COCO", "--gpus", "8", "--output", str(output), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not output.exists()
    assert (
        "1. pretrain/coco_splitmask_vit_small: to do\n   torchrun --standalone --nproc-per-node=8 tools/pretrain.py "
        in done.stdout
    )
    assert f"--weights {output}/pretrain/coco_splitmask_vit_small/encoder.safetensors" in done.stdout
    assert re.search(
        r"GPU hours: about \d+ \(pretrain \d+, train_det \d+\), from counted operations at \d+ TFLOP/s", done.stdout
    )
    assert "data set coco: COCO is no folder" in done.stdout
    (output / "pretrain/coco_splitmask_vit_small").mkdir(parents=True)
    (output / "pretrain/coco_splitmask_vit_small/encoder.safetensors").write_bytes(b"")
    (output / "det/coco_3x_vit_small_splitmask_coco_seed0").mkdir(parents=True)
    (output / "det/coco_3x_vit_small_splitmask_coco_seed0/config.json").write_text("{}")
    again = tool("coco/vit_small_splitmask_coco", "--data", "COCO", "--output", str(output), "--dry-run").stdout
    assert "1. pretrain/coco_splitmask_vit_small: done, skipped" in again
    assert "2. det/coco_3x_vit_small_splitmask_coco_seed0: begun, continues" in again
    assert "--resume" in again and "1 of 2 steps to do" in again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coca", "--data", "x"], "unknown table 'coca': did you mean 'coco'?"),
        (["smal", "--data", "x"], "unknown table 'smal': did you mean 'small'?"),
        (["coco/vit_small_splitmask", "--data", "x"], "row of table coco 'vit_small_splitmask': did you mean"),
        (["small/ful", "--data", "x"], "unknown row of the study 'ful': did you mean 'full'?"),
        (["small", "--data", "x", "--size", "tpu"], "unknown --size 'tpu'"),
        (["small", "--data", "{empty}", "--size", "cpu"], "holds no folder nuclei"),
        (["coco"], "--data ROOT is missing"),
        (["coco", "--data="], "--data is empty"),
        (["small", "--data", "{empty}", "--gpus", "2"], "--gpus, --precision and --tflops go with the tables"),
        (["coco", "--data", "{empty}", "--size", "cpu"], "--size, --rows and --sets go with small"),
        (["coco", "--data", "{empty}", "--precision", "16"], "unknown --precision '16'"),
        (["coco", "--data", "{empty}", "--weights", "deit=x"], "unknown --weights name 'deit': did you mean 'deit_"),
        (["coco/vit_small_deit", "--data", "{empty}"], "DEIT's published vit_small: give --weights deit_small=FILE"),
        (["coco/vit_small_random", "--data", "{empty}/no"], "data set coco: {empty}/no is no folder"),
        (["coco", "--data", "{empty}", "--pretrain-options", "--stps 3"], "unknown option '--stps'"),
        (["coco", "--data", "{empty}", "--train-det-options", "'"], "check the quotation marks"),
        (["coco", "--data", "{empty}", "--dryrun"], "unknown option '--dryrun': did you mean '--dry-run'?"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    done = tool(*(word.format(empty=tmp_path) for word in words), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert message.format(empty=tmp_path) in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text('{"command": "pretrain"}')
    done = tool("coco/vit_small_random", "--data", str(root), "--output", str(output))
    assert done.returncode == 2 and "holds another run" in done.stderr
    assert (output / "config.json").read_text() == '{"command": "pretrain"}'


@pytest.mark.slow
def test_a_row_runs_to_its_table(tmp_path: Path) -> None:
    """A row of the COCO table with the real tools, a few updates on pictures made here."""
    from tests.helpers.det_data import write_root

    root, output = write_root(tmp_path / "coco"), tmp_path / "out"
    small = "--steps 2 --batch-size 4 --img-size 64 --vocab-size 64 --log-every 1"
    heads = "out_channels=16 box_head_width=16 mask_head_width=16 mask_head_convs=1 rpn_post_nms_test=20"
    words = ["coco/vit_small_splitmask_coco", "--data", str(root), "--output", str(output), "--workers", "0"]
    words += ["--precision", "32", "--pretrain-options", small]
    words += ["--train-det-options", f"--steps 2 --batch-size 2 --img-size 64 --engine torchvision {heads}"]
    done = tool(*words)
    assert done.returncode == 0, done.stderr + done.stdout
    text = (output / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| ViT-S SplitMask, COCO"))
    assert row.startswith("| ViT-S SplitMask, COCO | paper | 45.3 |")
    assert "pre-training: 2 updates in place of 3,000 epochs" in text
    assert "2 updates in place of 36 epochs" in text and "out_channels 16 in place of 256" in text
    assert (output / "table.csv").read_text().count("vit_small_splitmask_coco,") == 6
    again = tool(*words)
    assert again.returncode == 0 and "0 of 2 steps to do" in again.stdout and "$ python" not in again.stdout
    other = tool(*words[:-1], "--steps 3 --batch-size 2 --img-size 64")
    assert other.returncode == 2 and "was made with other options" in other.stderr


def test_joined_options_may_begin_with_a_dash() -> None:
    words = reproduce._joined(["coco", "--pretrain-options", "--steps 3", "--data", "x"])
    assert reproduce.build_parser().parse_args(words).pretrain_options == "--steps 3"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (StepError(143, None), ("stopped: the same command continues from here", "")),
        (StepError(130, None), ("stopped: the same command continues from here", "")),
        (StepError(2, "error: --lr 0 is wrong"), ("", "error: --lr 0 is wrong\n")),
    ],
)
def test_exit_codes_and_error_lines_of_steps_are_passed_on(
    error: StepError,
    shown: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(self: Executor, steps: list[Step]) -> None:
        raise error

    monkeypatch.setattr(Executor, "run", run)
    (tmp_path / "coco").mkdir()
    words = ["coco/vit_small_random", "--data", str(tmp_path / "coco"), "--output", str(tmp_path / "out")]
    assert reproduce.main(words) == error.code
    out, err = capsys.readouterr()
    assert shown[0] in out and err == shown[1]
    assert not (tmp_path / "out" / "table.md").exists()
    assert reproduce.main(words) == error.code  # the folder can be used again


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    output = tmp_path / "out"
    code = (
        "import sys, time; from pretrain.training.run_folder import RunFolder\n"
        "folder = RunFolder.open(sys.argv[1], resume=False, artefact='x'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = tool("coco/vit_small_random", "--data", str(tmp_path / "coco"), "--output", str(output))
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 2 and "is in use by another process" in done.stderr
