"""Runs the jobs of a plan in its folder as processes, several at once: output, signals, going on. Free of torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pretrain.training.run_folder import RunFolder, read_object, write_json
from pretrain.training.signals import discard
from splitmask_backbones.errors import UserError, first_few
from splitmask_backbones.run_files import CONFIG, ENCODER, LOCK
from tools.running.job import WITHOUT_DEVICE, Job
from tools.running.output import Output
from tools.running.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
RECORD, LOGS = "steps.json", "logs"
POLL_SECONDS = 0.1


class JobError(Exception):
    """A job that did not succeed.

    Attributes:
        code: exit code to pass on: 2, or 128 + n after signal n.
        line: an `error: ...` line, or None after a signal that was meant to stop the job.
    """

    def __init__(self, code: int, line: str | None) -> None:
        super().__init__(line)
        self.code, self.line = code, line


@dataclass
class Running:
    """A job that runs."""

    job: Job
    process: subprocess.Popen[Any]
    output: Output
    started: float


class Executor:
    """Runs jobs below `output`; `output/steps.json` keeps what decides the result of each, and its seconds.

    Args:
        at_once: how many jobs run at the same time.
        threads: of torch in each job; None leaves that to torch.
        live: show what the jobs say on the screen; otherwise it goes to `output/logs/`, and the progress is shown.
        extra: options of every job that change no result, such as --debug.
        device: of every job that computes on one; "auto" leaves that to the tools.
    """

    def __init__(
        self,
        output: Path,
        at_once: int = 1,
        threads: int | None = None,
        gpus: int = 1,
        live: bool = False,
        extra: Sequence[str] = (),
        device: str = "auto",
    ) -> None:
        self.output, self.at_once, self.threads, self.gpus = output, at_once, threads, gpus
        self.live, self.extra, self.device = live, extra, device
        record = read_object(output / RECORD)
        self.record: dict[str, dict[str, Any]] = {n: entry for n, entry in record.items() if isinstance(entry, dict)}
        self._running: list[Running] = []
        self._received: int | None = None

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises ValueError where a job was begun or finished otherwise than planned: options, weights, values."""
        for job in jobs:
            if not (job.done or job.started):
                continue
            trains = job.resumable or job.num_steps is not None
            before, now = self.record.get(job.name, {}).get("identity"), job.identity()
            if trains and before is not None and before != now:
                told = [text for text in before if text not in now] or before
                told_now = [text for text in now if text not in before] or now
                raise UserError(
                    f"{job.folder} was made with other options ({' '.join(told)}) than those of now "
                    f"({' '.join(told_now)}): use the old ones, choose another --output, or remove that folder"
                )
            replaced = job.replaced_weights()
            if replaced is not None:
                raise UserError(
                    f"{job.folder} began from other weights than those of now ({replaced}): choose another --output, "
                    "or remove that folder"
                )
            changed = job.changed_values() if job.resumable else {}
            if changed:
                raise UserError(
                    f"{job.folder} was made by another version of its recipe or config ({_told(changed)}): choose "
                    "another --output, or remove that folder"
                )

    @staticmethod
    def _spared(jobs: Sequence[Job]) -> set[str]:
        """Returns the names of encoders that are gone and that nothing waits for: all that began from them is finished.

        Raises:
            ValueError: one has to be made anew for some jobs, and others are finished that began from another.
        """
        spared = set()
        for job in jobs:
            waiting = [other for other in jobs if job.name in other.needs]
            finished = [other for other in waiting if other.done]
            if job.artefact != ENCODER or not job.resumable or job.done or not finished:
                continue
            if len(finished) < len(waiting):
                folders = [str(other.folder) for other in finished]
                raise UserError(
                    f"{first_few(folders)}: finished, but from what {job.folder} held before, which is to "
                    f"be made anew: restore its {ENCODER}, or remove these folders as well"
                )
            spared.add(job.name)
        return spared

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs what is not finished, in order, each after the jobs that it needs.

        Raises:
            JobError: a job failed (then the others are asked to stop, and save), or a signal came.
        """
        self.check(jobs)
        self.output.mkdir(parents=True, exist_ok=True)
        finished = {job.name for job in jobs if job.done} | self._spared(jobs)
        pending = [job for job in jobs if job.name not in finished]
        # A terminal that closes is a stop as well, but not under nohup.
        hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        before: dict[int, Any] = {n: signal.signal(n, self._forward) for n in (signal.SIGINT, signal.SIGTERM, *hang_up)}
        failure: JobError | None = None
        complete = False
        spent = {name: entry.get("seconds", 0.0) for name, entry in self.record.items()}
        try:
            with Progress(jobs, finished, self.at_once, spent, follow=not self.live) as progress:
                while self._running or pending and failure is None and self._received is None:
                    if failure is None and self._received is None:
                        self._launch(pending, finished, progress)
                    for running in [one for one in self._running if one.process.poll() is not None]:
                        problem = self._finish(running, progress)
                        if problem is None:
                            finished.add(running.job.name)
                        elif failure is None and self._received is None:
                            failure = problem
                            self._stop_all(signal.SIGTERM)
                    progress.update([(running.job, running.started) for running in self._running])
                    if self._running:
                        time.sleep(POLL_SECONDS)
            complete = True
        finally:
            if not complete:  # an error of our own, such as an output that nobody reads any more
                self._stop_all(signal.SIGTERM)
                for running in self._running:
                    running.process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        if failure is not None:  # also where a signal came while the others saved
            raise failure
        if self._received is not None:
            raise JobError(128 + self._received, None)

    def seconds(self, name: str) -> float:
        """Returns the wall time of a job over all attempts, 0 before the first."""
        return self.record.get(name, {}).get("seconds", 0.0)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # there is nobody to talk to any more
            discard(sys.stdout, sys.stderr)
        self._received = signal.SIGTERM if number == signal.SIGHUP else number  # the tools save at these two
        self._stop_all(self._received)

    def _stop_all(self, number: int) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.process.send_signal(number)

    def _launch(self, pending: list[Job], finished: set[str], progress: Progress) -> None:
        for job in list(pending):
            if len(self._running) >= self.at_once or self._received is not None:
                return
            if not finished.issuperset(job.needs):
                continue
            pending.remove(job)
            progress.say(("\n$ " if self.live else "$ ") + job.shown(self.gpus))
            if job.resumable and not job.started:
                self.record.pop(job.name, None)  # of a run whose folder was removed
            self._note(job, 0.0)
            self._running.append(self._start(job))
            if self._received is not None:  # it came between the last look and the start
                self._stop_all(self._received)
        assert self._running or not pending, f"{pending[0].name} waits for what is not in the plan"

    def _start(self, job: Job) -> Running:
        python = [sys.executable]
        if self.gpus > 1 and not job.single_process:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}"]
        # Configs of this checkout are named so that the command works in any folder.
        ours = ("det_configs/", "seg_configs/")
        argv = [
            str(ROOT / text) if text.startswith(ours) and not Path(text).exists() else text for text in job.full_argv()
        ]
        names = () if self.threads is None else ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict.fromkeys(names, str(self.threads))}
        output = Output(None if self.live else self.output / LOGS / f"{job.name.replace('/', '__')}.log")
        device = [] if self.device == "auto" or job.tool in WITHOUT_DEVICE else ["--device", self.device]
        command = [*python, str(ROOT / "tools" / job.tool), *argv, *device, *self.extra]
        return Running(job, output.start(command, job.shown(self.gpus), environment), output, time.monotonic())

    def _finish(self, running: Running, progress: Progress) -> JobError | None:
        """Returns what went wrong, None if nothing did."""
        self._running.remove(running)
        job, code = running.job, running.process.returncode
        self._note(job, time.monotonic() - running.started)
        line = running.output.error()
        if code == 0 and job.done:
            progress.finished(job, self.seconds(job.name))
            return None
        code = 128 - code if code < 0 else code
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return JobError(code, None)
        what = f"ended with exit code {code}" if code else f"ended without {job.artefact}"
        return JobError(2, line or f"error: {job.name}: tools/{job.tool} {what}: {running.output.remedy}")

    def _note(self, job: Job, seconds: float) -> None:
        seconds = round(self.seconds(job.name) + seconds, 1)
        self.record[job.name] = {"seconds": seconds, "identity": job.identity()}
        write_json(self.output / RECORD, self.record)


def _told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns values then and now in words; of one that fills a line, such as a pipeline, the name."""
    shown = {name: f"{name} {then} and not {value}" for name, (then, value) in changed.items()}
    return ", ".join(text if len(text) <= 100 else name for name, text in shown.items())


@contextmanager
def open_plan(output: Path, artefact: str, config: dict[str, Any]) -> Iterator[RunFolder]:
    """Owns a plan's folder: a new one, or one that was begun with the same config. No --resume is asked for.

    The caller writes the config of a new one as soon as its input is known to be good: a wrong input leaves nothing.
    `artefact` names the file that only such a plan leaves; `config` has "command", "values" that decide the result, and
    "free" ones.

    Raises:
        ValueError: the folder holds another run or other values, or is in use.
    """
    begun = (output / CONFIG).exists() or (output / LOCK).exists()
    with RunFolder.open(output, resume=begun, artefact=artefact) as folder:
        if folder.previous is not None:
            if folder.previous.get("command") != config["command"]:
                raise UserError(f"--output {output} holds another run ({CONFIG}): choose another folder")
            try:
                folder.write_config(config)  # compares
            except UserError as error:  # here a run is resumed without the option
                raise UserError(str(error).removeprefix("--resume: ")) from None
        yield folder


def run_plan(
    executor: Executor, jobs: Sequence[Job], config: dict[str, Any], prepare: Callable[[], object] = lambda: None
) -> int:
    """Carries out a plan whose jobs are known from the start, `prepare` first; returns the exit code.

    Raises:
        ValueError: the folder holds something else, or `prepare` raised it, which leaves a new folder unmade.
    """
    with open_plan(executor.output, RECORD, config) as folder:
        prepare()
        folder.write_config(config)
        folder.start()
        return carry_out(executor, jobs)


def carry_out(executor: Executor, jobs: Sequence[Job]) -> int:
    """Runs the jobs of a plan; returns the exit code, and says why it is not 0."""
    try:
        executor.run(jobs)
    except JobError as error:
        if error.line is not None:
            sys.stderr.write(f"{error.line}\n")
        else:
            sys.stdout.write("stopped: the same command continues from here\n")
            sys.stdout.flush()
        return error.code
    return 0
