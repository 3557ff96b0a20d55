"""`tools/reproduce.py TABLE[/ROW] --rehearse`: every step of the plan with few optimizer steps, and what is missing.

Free of torch. A rehearsal leaves timings alone (pretrain/training/rehearsal.py): no results.json, no encoder.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.training.progress import duration
from pretrain.training.run_folder import read_object
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import REHEARSAL, REHEARSAL_ENCODER, REHEARSAL_RECORD
from tools.common import plots
from tools.reproduction.plan import Planner
from tools.running.executor import Executor, JobError, open_plan
from tools.running.job import Job

TABLE = "rehearsal.md"
READY = "ready"
ACCUMULATE = {"pretrain": "--accumulate {}", "train_cls": "--accumulate {}", "train_det": "accumulate={}"}
ACCUMULATE["train_seg"] = ACCUMULATE["train_det"]
HEADER = ["step of the plan", "batch", "s a step", "memory, GB", "checkpoint, GB", "evaluation, s an image"]
HEADER += ["whole run here", "state"]
CAPTION = """A rehearsal: timings of a few steps on this machine, no result. "batch" is what was rehearsed, of the
recipe's; a smaller one is scaled by its images, which is too much where it leaves a GPU idle. The whole run counts
set-up, training, checkpoints and evaluations; the check of all images comes on top."""


@dataclass
class Rehearsed:
    """One job of the plan and what its rehearsal found.

    Attributes:
        missing: what has to be given or repaired before it can run; empty if it is ready.
        entry: rehearsal.json, empty where the job could not be rehearsed.
    """

    job: Job
    missing: list[str]
    entry: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """Of the whole run on this machine, None where nothing is known."""
        from pretrain.training.rehearsal import whole_run

        entry, job = self.entry, self.job
        return sum(whole_run(entry, job.num_steps, job.batch_size or None).values()) if entry else None

    def cells(self) -> list[str]:
        """Returns a row of the table."""
        entry, seconds = self.entry, self.seconds
        state = READY if not self.missing else "; ".join(self.missing)
        if not self.missing and entry and entry["accumulate"] > 1:
            tool = self.job.tool.removesuffix(".py")
            given = ACCUMULATE[tool].format(entry["accumulate"])
            state += f' with --{tool.replace("_", "-")}-options "{given}"'
        if not entry or seconds is None:
            return [self.job.name, *["-"] * (len(HEADER) - 2), state]
        of = f" of {self.job.batch_size:,}" if self.job.batch_size not in (0, entry["batch_size"]) else ""
        parts = f", in {entry['accumulate']} parts" if entry["accumulate"] > 1 else ""
        evaluated = entry["evaluated_images"]
        return [
            self.job.name,
            f"{entry['batch_size']:,}{of}{parts}",
            f"{entry['step_seconds']:.2f}",
            f"{entry['peak_memory_bytes'] / 1e9:.1f}",
            f"{entry['checkpoint_bytes'] / 1e9:.2f}",
            f"{entry['evaluation_seconds'] / evaluated:.2f}" if evaluated else "-",
            duration(seconds),
            state,
        ]


def rehearse(title: str, jobs: Sequence[Job], planner: Planner, gpus: int, batch_sizes: Mapping[str, int]) -> int:
    """Rehearses the jobs of a plan one after the other, prints and writes the table; returns the exit code.

    Rehearsals of the same command that have ended are not made again.

    Args:
        title: of the plan.
        planner: that made the jobs.
        gpus: processes of torchrun.
        batch_sizes: images of a step by tool; others have the recipe's, accumulated until it fits into the memory.

    Raises:
        ValueError: the folder holds something else, or a data set is not complete.
    """
    output = planner.output / REHEARSAL
    executor = Executor(output, gpus=gpus, device=planner.device)
    found: dict[str, Rehearsed] = {}
    try:
        with open_plan(output, TABLE, {"command": "reproduce", "values": {"make": REHEARSAL}}) as folder:
            planner.write_lists()
            if folder.previous is None:
                folder.write_config({"command": "reproduce", "values": {"make": REHEARSAL}})
            folder.start()
            for number, job in enumerate(jobs, start=1):
                sys.stdout.write(f"{number} of {len(jobs)}: {job.name}\n")
                sys.stdout.flush()
                found[job.name] = _rehearse(job, found, executor, batch_sizes)
    except JobError as error:
        sys.stdout.write("stopped: the same command continues from here\n")
        return error.code
    for job in jobs:
        (job.folder / REHEARSAL / REHEARSAL_ENCODER).unlink(missing_ok=True)
    report = [f"{title}: rehearsal", "", *_summary(list(found.values()))]
    rows = [rehearsed.cells() for rehearsed in found.values()]
    text = f"# {report[0]}\n\n{plots.markdown_table(HEADER, rows)}\n{CAPTION}\n\n" + "\n".join(report[2:]) + "\n"
    write_atomically(planner.output / TABLE, text.encode())
    sys.stdout.write(f"{text}\nwrote {planner.output / TABLE}\n")
    sys.stdout.flush()
    return 0


def _summary(found: Sequence[Rehearsed]) -> list[str]:
    """Returns how much is ready, how long it takes, and what is missing."""
    ready = sum(not rehearsed.missing for rehearsed in found)
    known = [seconds for rehearsed in found if (seconds := rehearsed.seconds) is not None]
    lines = [f"{ready} of {len(found)} steps are ready; together about {duration(sum(known))} on this machine"]
    waits = {f"{rehearsed.job.name} first" for rehearsed in found}  # said in its line of the table
    missing = dict.fromkeys(text for rehearsed in found for text in rehearsed.missing if text not in waits)
    return [*lines, "", "missing:", *(f"- {text}" for text in missing)] if missing else lines


def _rehearse(
    job: Job, found: Mapping[str, Rehearsed], executor: Executor, batch_sizes: Mapping[str, int]
) -> Rehearsed:
    missing = list(job.missing)
    if missing:
        return Rehearsed(job, missing, {})
    if job.tool == "convert.py":  # takes seconds, and what it makes is the real thing
        return Rehearsed(job, [] if job.done else _run(executor, job), {})
    missing += [f"{name} first" for name in job.needs if found[name].missing]
    weights = dict(zip(job.argv, job.argv[1:], strict=False)).get("--weights", "none")
    if not job.needs and weights != "none" and not Path(weights).exists():
        missing.append(f"--weights: {weights} does not exist")
    batch_size = batch_sizes.get(job.tool.removesuffix(".py"))
    limit = (batch_size or job.batch_size) // executor.gpus
    accumulate = read_object(job.folder / REHEARSAL / REHEARSAL_RECORD).get("accumulate", 1)  # that did fit
    if executor.record.get(job.name, {}).get("identity") != _as_rehearsal(job, batch_size, accumulate).identity():
        accumulate = 1
    while True:
        tried = _as_rehearsal(job, batch_size, accumulate)
        entry = read_object(tried.folder / REHEARSAL_RECORD)
        if not entry or executor.record.get(tried.name, {}).get("identity") != tried.identity():
            (tried.folder / REHEARSAL_RECORD).unlink(missing_ok=True)
            failed = _run(executor, tried)
            name = job.tool.removesuffix(".py")
            if failed and "out of memory" in failed[0] and name in ACCUMULATE and limit % (2 * accumulate) == 0:
                accumulate *= 2
                continue
            missing += failed
        return Rehearsed(job, missing, read_object(tried.folder / REHEARSAL_RECORD))


def _run(executor: Executor, job: Job) -> list[str]:
    """Runs a job; returns why it failed, if it did.

    Raises:
        JobError: a signal came.
    """
    try:
        executor.run([job])
    except JobError as error:
        if error.line is None:
            raise
        return [error.line.removeprefix("error: ")]
    return []


def _as_rehearsal(job: Job, batch_size: int | None, accumulate: int) -> Job:
    """Returns the job with --rehearse; where the encoder is not there yet, with that of its own rehearsal, or none."""
    tool = job.tool.removesuffix(".py")
    argv = [
        _encoder(text) if before == "--weights" else text
        for before, text in zip(("", *job.argv), job.argv, strict=False)
    ]
    if job.model and argv[argv.index("--weights") + 1] == "none":
        argv += ["--model", job.model]
    argv += ["--output", str(job.folder), "--rehearse"]
    if tool in ACCUMULATE:
        argv += ["--batch-size", str(batch_size)] if batch_size is not None else []
        argv += ACCUMULATE[tool].format(accumulate).split() if accumulate > 1 else []
    once: dict[str, Any] = {"artefact": REHEARSAL_RECORD, "needs": (), "resumable": False, "with_output": False}
    return replace(job, argv=tuple(argv), folder=job.folder / REHEARSAL, **once)


def _encoder(weights: str) -> str:
    if weights == "none" or Path(weights).exists():
        return weights
    rehearsed = Path(weights).parent / REHEARSAL / REHEARSAL_ENCODER
    return str(rehearsed) if rehearsed.exists() else "none"
