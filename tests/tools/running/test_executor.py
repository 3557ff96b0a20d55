"""The executor with fake tools: running and continuing, its folder, signals, errors, output in logs and on screen."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tools.running import executor
from tools.running.executor import Executor, JobError, carry_out, open_plan
from tools.running.job import Job

# A tool that writes what it was told, and does what the first of it says.
FAKE = """
import json, os, signal, sys, time
argv = sys.argv[1:]
out = argv[argv.index("--output") + 1]
os.makedirs(out, exist_ok=True)
open(out + "/config.json", "w").write("{}")
with open(out + "/calls", "a") as file: file.write(json.dumps(argv) + "\\n")
with open(out + "/times", "a") as file: file.write(f"{time.time()} ")
while argv[1:2] == ["after"] and not os.path.exists(argv[2]): time.sleep(0.02)
if argv[0] == "fail" and not os.path.exists(out + "/mended"):
    print("hello"); sys.exit(sys.stderr.write("warning: odd\\nerror: --lr 0 is wrong\\n") and 2)
if argv[0] == "die": os.kill(os.getpid(), 9)
if argv[0] == "stopped": sys.stderr.write("error: half a line\\n"); sys.exit(130)
if argv[0] == "lazy": sys.exit(0)
if argv[0] == "wait" and "--resume" not in argv:
    def stop(number, frame):
        open(out + "/saved", "w").write(str(number)); sys.exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
    open(out + "/ready", "w").write("")
    time.sleep(60)
time.sleep(float(argv[1]) if len(argv) > 1 and argv[1].replace(".", "").isdigit() else 0)
with open(out + "/times", "a") as file: file.write(f"{time.time()} ")
open(out + "/done", "w").write("")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "root" / "tools").mkdir(parents=True)
    (tmp_path / "root" / "tools" / "fake.py").write_text(FAKE)
    monkeypatch.setattr(executor, "ROOT", tmp_path / "root")
    return tmp_path / "out"


def job(output: Path, name: str, *argv: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(name, "fake.py", argv, output / name, "done", needs, seconds=1.0)


def calls(output: Path, name: str) -> list[list[str]]:
    return [json.loads(line) for line in (output / name / "calls").read_text().splitlines()]


def test_jobs_run_once_in_order_and_leave_logs(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job(fake, "b/one", "ok"), job(fake, "a", "ok", "--weights", "w", needs=("b/one",))]
    Executor(fake).run(jobs)
    assert calls(fake, "a") == [["ok", "--weights", "w", "--output", str(fake / "a")]]
    first, second = ((fake / name / "times").read_text().split() for name in ("b/one", "a"))
    assert float(first[1]) <= float(second[0])
    assert (fake / "logs" / "b__one.log").read_text().startswith("$ python tools/fake.py ok")
    shown = capsys.readouterr().out
    assert "b/one: finished in" in shown and "(2 of 2)" in shown
    Executor(fake).run(jobs)
    assert len(calls(fake, "a")) == 1
    assert json.loads((fake / "steps.json").read_text())["a"]["identity"] == ["fake.py", "ok"]


def test_jobs_run_side_by_side(fake: Path) -> None:
    jobs = [job(fake, name, "ok", "0.8") for name in ("a", "b")]
    jobs.append(job(fake, "c", "ok", needs=("a", "b")))
    Executor(fake, at_once=2, threads=1).run(jobs)
    (a0, a1), (b0, b1), (c0, _) = (map(float, (fake / name / "times").read_text().split()) for name in "abc")
    assert max(a0, b0) < min(a1, b1), "at the same time"
    assert c0 >= max(a1, b1)


def test_a_failed_job_stops_the_plan_with_its_own_line_and_goes_on_later(fake: Path) -> None:
    jobs = [job(fake, "a", "ok"), job(fake, "b", "fail", needs=("a",)), job(fake, "c", "ok", needs=("b",))]
    with pytest.raises(JobError) as failed:
        Executor(fake).run(jobs)
    assert (failed.value.code, failed.value.line) == (2, "error: --lr 0 is wrong")
    assert "hello\nwarning: odd\n" in (fake / "logs" / "b.log").read_text()
    assert not (fake / "c").exists()
    (fake / "b" / "mended").write_text("")
    Executor(fake).run(jobs)
    assert len(calls(fake, "a")) == 1
    assert [argv[-1] for argv in calls(fake, "b")] == [str(fake / "b"), "--resume"]
    assert (fake / "c" / "done").exists()


def test_the_others_are_asked_to_save_when_one_fails(fake: Path) -> None:
    jobs = [job(fake, "a", "wait"), job(fake, "b", "fail", "after", str(fake / "a" / "ready"))]
    with pytest.raises(JobError, match="error: --lr 0 is wrong"):
        Executor(fake, at_once=2).run(jobs)
    assert (fake / "a" / "saved").read_text() == str(int(signal.SIGTERM))


def test_why_a_job_failed_is_told_although_a_signal_comes_while_the_others_save(fake: Path) -> None:
    jobs = [job(fake, "a", "wait"), job(fake, "b", "fail", "after", str(fake / "a" / "ready"))]
    plan = Executor(fake, at_once=2)
    before, stop_all = signal.getsignal(signal.SIGINT), plan._stop_all

    def stop_and_interrupt(number: int) -> None:
        stop_all(number)
        plan._stop_all = stop_all
        os.kill(os.getpid(), signal.SIGINT)

    plan._stop_all = stop_and_interrupt
    with pytest.raises(JobError, match="error: --lr 0 is wrong") as failed:
        plan.run(jobs)
    assert failed.value.code == 2 and plan._received == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_jobs_save_when_nobody_reads_the_output(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(*_: object) -> None:
        if (fake / "a" / "ready").exists():
            raise BrokenPipeError

    monkeypatch.setattr(executor.Progress, "update", update)
    with pytest.raises(BrokenPipeError):
        Executor(fake).run([job(fake, "a", "wait")])
    assert (fake / "a" / "saved").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize(("what", "message"), [("die", "ended with exit code 137"), ("lazy", "ended without done")])
def test_a_job_that_says_nothing_is_named(fake: Path, what: str, message: str) -> None:
    with pytest.raises(JobError) as failed:
        Executor(fake).run([job(fake, "x", what)])
    assert failed.value.code == 2
    assert re.fullmatch(rf"error: x: tools/fake.py {message}: see .*x\.log", failed.value.line or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_jobs_and_end_the_plan(fake: Path, number: signal.Signals) -> None:
    jobs = [job(fake, "a", "wait"), job(fake, "b", "wait"), job(fake, "c", "ok")]

    def send() -> None:
        while not all((fake / name / "ready").exists() for name in "ab"):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(JobError) as stopped:
        Executor(fake, at_once=2).run(jobs)
    sender.join()
    assert (stopped.value.code, stopped.value.line) == (128 + number, None)
    assert [(fake / name / "saved").read_text() for name in "ab"] == [str(int(number))] * 2
    assert not (fake / "c").exists()
    assert signal.getsignal(number) is before
    Executor(fake).run(jobs)
    assert all((fake / name / "done").exists() for name in "abc")


def test_other_options_for_a_job_that_exists_are_refused(fake: Path) -> None:
    Executor(fake).run([job(fake, "a", "ok", "--steps", "5", "--data", "here")])
    Executor(fake).run([job(fake, "a", "ok", "--steps", "5", "--data", "there")])  # moved data are the same data
    with pytest.raises(UserError, match=r"other options \(5\) than those of now \(6\)"):
        Executor(fake).run([job(fake, "a", "ok", "--steps", "6", "--data", "here")])
    again = replace(job(fake, "a", "ok", "--steps", "6"), resumable=False)
    Executor(fake).run([again])  # a conversion, pictures
    with pytest.raises(UserError, match="other options"):  # a training that cannot be resumed is a training too
        Executor(fake).run([replace(again, num_steps=6)])


def test_a_finished_training_from_weights_that_were_replaced_is_refused(fake: Path) -> None:
    weights = fake.parent / "encoder.safetensors"
    weights.write_bytes(b"one")
    made = replace(job(fake, "a", "ok", "--weights", str(weights)), num_steps=5)
    Executor(fake).run([made])
    (made.folder / "config.json").write_text(json.dumps({"--weights": hashlib.sha256(b"one").hexdigest()}))
    Executor(fake).check([made])
    weights.write_bytes(b"another")
    os.utime(weights, ns=(0, 0))
    with pytest.raises(UserError, match=re.escape(f"other weights than those of now ({weights})")):
        Executor(fake).check([made])


# Counts the signals that reach it, and takes its time to end.
STUBBORN = """
import os, signal, sys, time
out = sys.argv[sys.argv.index("--output") + 1]
os.makedirs(out, exist_ok=True)
count = 0
def stop(number, frame):
    global count
    count += 1
for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)
open(out + "/ready", "w").write("ready")
while not count: time.sleep(0.02)
time.sleep(0.3)
open(out + "/count", "w").write(str(count))
sys.exit(128 + signal.SIGTERM)
"""


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_job_once_and_its_end_is_awaited(fake: Path, number: signal.Signals, live: bool) -> None:
    (fake.parent / "root" / "tools" / "fake.py").write_text(STUBBORN)

    def send() -> None:
        while not (fake / "a" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    before = signal.getsignal(number)
    executor_of = Executor(fake, live=live)
    with pytest.raises(JobError) as stopped:
        executor_of.run([job(fake, "a"), job(fake, "b")])
    sender.join()
    assert (stopped.value.code, stopped.value.line) == (128 + number, None)
    assert (fake / "a" / "count").read_text() == "1"
    assert not (fake / "b").exists()
    assert executor_of.seconds("a") >= 0.3, "the time of an interrupted job counts"
    assert signal.getsignal(number) is before


def test_a_hang_up_stops_and_saves_unless_it_is_ignored(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send() -> None:
        while not (fake / "a" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)

    sender = threading.Thread(target=send)
    monkeypatch.setattr(executor, "discard", lambda *streams: None)  # pytest's own
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        sender.start()
        with pytest.raises(JobError) as stopped:
            Executor(fake).run([job(fake, "a", "wait")])
        sender.join()
        assert stopped.value.code == 128 + signal.SIGTERM
        assert (fake / "a" / "saved").read_text() == str(int(signal.SIGTERM))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        Executor(fake).run([job(fake, "b", "ok")])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_jobs_save_when_the_plan_is_killed(fake: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tools.running import executor; from tools.running.job import Job\n"
        "out = Path(sys.argv[1]); executor.ROOT = out.parent / 'root'\n"
        "executor.Executor(out).run([Job('a', 'fake.py', ('wait',), out / 'a', 'done')])"
    )
    plan = subprocess.Popen([sys.executable, "-c", code, str(fake)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (fake / "a" / "ready").exists():
        assert time.monotonic() < deadline and plan.poll() is None
        time.sleep(0.05)
    plan.kill()
    plan.wait()
    while not (fake / "a" / "saved").exists() or not (fake / "a" / "saved").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (fake / "a" / "saved").read_text() == str(int(signal.SIGTERM))


def test_what_began_from_a_training_that_is_made_anew_is_refused(fake: Path) -> None:
    (fake.parent / "root" / "tools" / "fake.py").write_text(FAKE.replace("/done", "/encoder.safetensors"))
    pretraining = replace(job(fake, "pretrain", "ok"), artefact="encoder.safetensors")
    tunings = [replace(job(fake, n, "ok", needs=("pretrain",)), artefact="encoder.safetensors") for n in ("one", "two")]
    jobs = [pretraining, *tunings]
    Executor(fake).run(jobs)
    shutil.rmtree(fake / "pretrain")
    Executor(fake).run(jobs)  # nothing waits for it
    assert not (fake / "pretrain").exists()
    shutil.rmtree(fake / "two")
    with pytest.raises(UserError, match=f"{fake / 'one'}: finished, but from what {fake / 'pretrain'} held before"):
        Executor(fake).run(jobs)
    assert not (fake / "pretrain").exists() and not (fake / "two").exists()
    shutil.rmtree(fake / "one")
    Executor(fake).run(jobs)
    made = replace(pretraining, resumable=False)  # a conversion gives the same again, and weights are compared
    shutil.rmtree(fake / "pretrain")
    shutil.rmtree(fake / "two")
    Executor(fake).run([made, *tunings])
    assert len(calls(fake, "one")) == 1


def test_the_device_goes_to_every_job_that_computes_on_one(fake: Path) -> None:
    (fake.parent / "root" / "tools" / "convert.py").write_text(FAKE)
    converts = replace(job(fake, "b", "ok"), tool="convert.py")
    Executor(fake, device="cpu").run([job(fake, "a", "ok"), converts])
    assert calls(fake, "a")[0][-2:] == ["--device", "cpu"] and "--device" not in calls(fake, "b")[0]
    Executor(fake, device="cuda").run([job(fake, "a", "ok"), converts])  # the same run: bytes are promised per device


def test_live_output_goes_to_the_screen_and_the_error_line_is_kept(
    fake: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(fake, "a", "fail")]
    with pytest.raises(JobError) as failed:
        Executor(fake, live=True, extra=["--debug"]).run(jobs)
    assert (failed.value.code, failed.value.line) == (2, "error: --lr 0 is wrong")
    shown = capfd.readouterr()
    assert shown.err == "warning: odd\n"
    assert shown.out == f"\n$ python tools/fake.py fail --output {fake / 'a'}\nhello\n"
    assert calls(fake, "a")[0][-1] == "--debug"
    assert not (fake / "logs").exists()
    (fake / "a" / "mended").write_text("")
    first = Executor(fake, live=True).seconds("a")
    again = Executor(fake, live=True)
    again.run(jobs)
    assert calls(fake, "a")[1][-1] == "--resume"
    assert again.seconds("a") > first
    capfd.readouterr()
    Executor(fake, live=True).run(jobs)
    assert capfd.readouterr().out == "", "what is finished is not begun again"


def test_live_jobs_that_die_without_a_word_are_named(fake: Path) -> None:
    with pytest.raises(JobError, match=r"error: x: tools/fake.py ended with exit code 137: run the command above"):
        Executor(fake, live=True).run([job(fake, "x", "die")])
    with pytest.raises(JobError) as stopped:
        Executor(fake, live=True).run([job(fake, "y", "stopped")])
    assert (stopped.value.code, stopped.value.line) == (130, None)  # stopped on purpose: no error


CONFIG = {"command": "demo", "values": {"seed": 0}, "free": {"workers": 1}}


def test_a_plan_continues_with_the_same_values(tmp_path: Path) -> None:
    with open_plan(tmp_path / "out", "table.md", CONFIG) as folder:
        folder.write_config(CONFIG)
        folder.start()
    with open_plan(tmp_path / "out", "table.md", CONFIG | {"free": {"workers": 2}}) as folder:
        folder.write_config(CONFIG)
    for other, message in (
        (CONFIG | {"values": {"seed": 1}}, "^.*out holds a run with other settings: --seed was 0 and is now 1"),
        (CONFIG | {"command": "reproduce"}, "--output .*out holds another run"),
    ):
        with pytest.raises(UserError, match=message), open_plan(tmp_path / "out", "table.md", other):
            raise AssertionError("is not opened")


def test_a_wrong_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), open_plan(tmp_path / "out", "table.md", CONFIG):
        raise UserError("wrong")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (JobError(143, None), ("stopped: the same command continues from here\n", "")),
        (JobError(2, "error: --lr 0 is wrong"), ("", "error: --lr 0 is wrong\n")),
    ],
)
def test_exit_codes_and_lines_are_passed_on(
    error: JobError, shown: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(self: Executor, jobs: list) -> None:
        raise error

    monkeypatch.setattr(Executor, "run", fail)
    assert carry_out(Executor(tmp_path), []) == error.code
    assert capsys.readouterr() == shown


def test_the_seconds_are_those_of_the_run_that_is_there(fake: Path) -> None:
    """A folder that was removed, and made again, took its time once."""
    one = job(fake, "one", "ok")
    Executor(fake).run([one])
    record = json.loads((fake / "steps.json").read_text())
    record["one"]["seconds"] = 1000.0
    (fake / "steps.json").write_text(json.dumps(record))
    shutil.rmtree(fake / "one")
    Executor(fake).run([one])
    assert 0 < Executor(fake).seconds("one") < 500
    record["one"]["seconds"] = 1000.0
    (fake / "steps.json").write_text(json.dumps(record))
    (fake / "one" / "done").unlink()  # stopped in between, and continued
    Executor(fake).run([one])
    assert 1000 < Executor(fake).seconds("one") < 1500
