"""Runs the steps of a plan as processes, several at once: logs, signals, going on. Free of torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pretrain.training.run_folder import write_json
from splitmask_backbones.errors import UserError
from tools.cli import describe
from tools.demos.steps import StepError
from tools.reproduction.progress import Progress
from tools.reproduction.sets import write_list
from tools.reproduction.step import LIST, Step

ROOT = Path(__file__).resolve().parents[2]
RECORD, LOGS = "steps.json", "logs"
POLL_SECONDS = 0.2


@dataclass
class Job:
    """A step that runs."""

    step: Step
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float


class Executor:
    """Runs steps below `output`, at most `jobs` at once.

    `output/steps.json` keeps the words and the seconds of each, `output/logs/` what each says.
    """

    def __init__(self, output: Path, jobs: int = 1, threads: int | None = None, gpus: int = 1) -> None:
        self.output, self.jobs, self.threads, self.gpus = output, jobs, threads, gpus
        self.record: dict[str, Any] = read_record(output)
        self._running: list[Job] = []
        self._received: int | None = None

    def check(self, steps: list[Step]) -> None:
        """Raises ValueError where a step was begun or finished with other options or recipe values than the plan's."""
        for step in steps:
            if not (step.resumable and (step.done or step.started)):
                continue
            before = self.record.get(step.name, {}).get("identity")
            if before is not None and before != step.identity():
                different = [word for word in before if word not in step.identity()] or before
                now = [word for word in step.identity() if word not in before] or step.identity()
                raise UserError(
                    f"{step.folder} was made with other options ({' '.join(different)}) than those of now "
                    f"({' '.join(now)}): use the old ones, choose another --output, or remove that folder"
                )
            changed = step.changed_values()
            if changed:
                told = ", ".join(f"{name} {then} and not {now}" for name, (then, now) in changed.items())
                raise UserError(
                    f"{step.folder} was made by another version of its recipe ({told}): choose another --output, or "
                    "remove that folder"
                )

    def run(self, steps: list[Step]) -> None:
        """Runs what is not finished, in order, each after the steps that it needs.

        Raises:
            StepError: a step failed (then the others are asked to stop, and save), or a signal came.
        """
        self.check(steps)
        self.output.mkdir(parents=True, exist_ok=True)
        finished = {step.name for step in steps if step.done}
        pending = [step for step in steps if step.name not in finished]
        before: dict[int, Any] = {n: signal.signal(n, self._forward) for n in (signal.SIGINT, signal.SIGTERM)}
        failure: StepError | None = None
        progress = Progress(
            steps, finished, self.jobs, {name: e.get("seconds", 0.0) for name, e in self.record.items()}
        )
        try:
            with progress:
                while self._running or pending and failure is None and self._received is None:
                    if failure is None and self._received is None:
                        try:
                            self._launch(pending, finished, progress)
                        except (UserError, OSError) as error:  # of a step in this process
                            failure = StepError(2, f"error: {describe(error)}")
                            self._stop_all(signal.SIGTERM)
                    for job in [job for job in self._running if job.process.poll() is not None]:
                        problem = self._finish(job, progress)
                        if problem is None:
                            finished.add(job.step.name)
                        elif failure is None:
                            failure = problem
                            self._stop_all(signal.SIGTERM)
                    progress.update([(job.step, job.started) for job in self._running])
                    if self._running:
                        time.sleep(POLL_SECONDS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._stop_all(signal.SIGKILL)  # only after an error of our own is one still there
        if self._received is not None:
            raise StepError(128 + self._received, None)
        if failure is not None:
            raise failure

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._stop_all(number)

    def _stop_all(self, number: int) -> None:
        for job in self._running:
            if job.process.poll() is None:
                job.process.send_signal(number)

    def _launch(self, pending: list[Step], finished: set[str], progress: Progress) -> None:
        for step in list(pending):
            if len(self._running) >= self.jobs or self._received is not None:
                return
            if not finished.issuperset(step.needs):
                continue
            pending.remove(step)
            progress.say(f"$ {step.shown(self.gpus)}")
            self._note(step, 0.0)
            if step.tool == LIST:
                name, folder, destination = step.words
                progress.say(f"{write_list(name, Path(folder), Path(destination))} images -> {destination}")
                finished.add(step.name)
                progress.finished(step, 0.0)
                continue
            self._running.append(self._start(step))
            if self._received is not None:  # it came between the last look and the start
                self._stop_all(self._received)
        assert self._running or not pending, f"{pending[0].name} waits for what is not in the plan"

    def _start(self, step: Step) -> Job:
        log = self.output / LOGS / f"{step.name.replace('/', '__')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.threads is not None:
            environment |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        with open(log, "ab") as file:
            file.write(f"$ {step.shown(self.gpus)}\n".encode("utf-8", "surrogateescape"))
            file.flush()
            start = file.tell()
            # A process group of its own: Ctrl-C of a terminal would otherwise reach it twice.
            process = subprocess.Popen(
                [*self._python(step), str(ROOT / "tools" / step.tool), *map(_from_anywhere, step.arguments())],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment, process_group=0,
            )  # fmt: skip
        return Job(step, process, log, start, time.monotonic())

    def _python(self, step: Step) -> list[str]:
        if self.gpus == 1 or step.single_process:
            return [sys.executable]
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}"]

    def _finish(self, job: Job, progress: Progress) -> StepError | None:
        """Returns what went wrong, None if nothing did."""
        self._running.remove(job)
        seconds = time.monotonic() - job.started
        self._note(job.step, seconds)
        code = job.process.returncode
        if code == 0 and job.step.done:
            progress.finished(job.step, self.record[job.step.name]["seconds"])
            return None
        code = 128 - code if code < 0 else code
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return StepError(code, None)
        with open(job.log, encoding="utf-8", errors="replace") as file:
            file.seek(job.log_start)
            lines = [line.rstrip("\n") for line in file if line.startswith("error:")]
        what = f"ended with exit code {code}" if code else f"ended without {job.step.artefact}"
        return StepError(
            2, lines[-1] if lines else f"error: {job.step.name}: tools/{job.step.tool} {what}: see {job.log}"
        )

    def _note(self, step: Step, seconds: float) -> None:
        entry = self.record.setdefault(step.name, {"seconds": 0.0})
        entry |= {"identity": step.identity(), "seconds": round(entry["seconds"] + seconds, 1)}
        write_json(self.output / RECORD, self.record)


def _from_anywhere(word: str) -> str:
    """Returns the path of a config of this checkout, so that the command works in any folder."""
    is_ours = word.startswith(("det_configs/", "seg_configs/")) and not Path(word).exists()
    return str(ROOT / word) if is_ours else word


def read_record(output: Path) -> dict[str, Any]:
    """Returns what steps.json says about the steps so far: words that decide the result, seconds."""
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: entry for name, entry in record.items() if isinstance(entry, dict)}
