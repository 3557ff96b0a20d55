"""The plan in words, before anything runs: commands, what is done, GPU hours, disk. Free of torch."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.reproduction import cost
from tools.running.job import Job
from tools.running.progress import duration


def say(lines: Sequence[str]) -> None:
    """Prints a paragraph."""
    sys.stdout.write("".join(f"{line}\n" for line in lines) + "\n")
    sys.stdout.flush()


def command_lines(jobs: Sequence[Job], gpus: int = 1) -> list[str]:
    """Returns a heading and the command of each job."""
    lines = []
    for number, job in enumerate(jobs, start=1):
        state = "done, skipped" if job.done else "begun, continues" if job.started else "to do"
        lines += [f"{number}. {job.name}: {state}", f"   {job.shown(gpus)}"]
    return lines


def list_lines(lists: Mapping[str, Path]) -> list[str]:
    """Returns what is said of the lists of images, by data set, that are written before the jobs run."""
    return [
        f"list of the images of {name}: {file}, {'done' if file.exists() else 'written first'}"
        for name, file in lists.items()
    ]


def table_estimate(jobs: Sequence[Job], output: Path, tflops: float | None) -> list[str]:
    """Returns the lines on GPU hours and disk of a table's plan, and which figures they come from."""
    to_do = [job for job in jobs if not job.done]
    rate = cost.paper_rate() if tflops is None else tflops * 1e12
    hours: dict[str, float] = {}
    for job in to_do:
        tool = job.tool.removesuffix(".py")
        hours[tool] = hours.get(tool, 0.0) + job.operations / rate / 3600
    split = ", ".join(f"{tool} {_hours(value)}" for tool, value in hours.items() if value)
    source = (
        f"from counted operations at {rate / 1e12:.0f} TFLOP/s per GPU, what the paper's {cost.PAPER_HOURS:.1f} hours "
        f"on {cost.PAPER_GPUS} GPUs for SplitMask, ViT-B, ImageNet, {cost.PAPER_EPOCHS} epochs come to; "
        "--tflops F counts with what your GPU reaches"
        if tflops is None
        else f"from counted operations at --tflops {tflops:g} per GPU"
    )
    return [
        f"{len(to_do)} of {len(jobs)} jobs to do",
        f"GPU hours: about {_hours(sum(hours.values()))}{f' ({split})' if split else ''}, {source}",
        _disk(to_do, output),
    ]


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _disk(to_do: Sequence[Job], output: Path) -> str:
    scratch = max((job.scratch for job in to_do), default=0.0)
    needed = sum(job.disk for job in to_do) + scratch
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    more = f"; {scratch / 1e9:.1f} GB of it for the features of a probe while it runs" if scratch else ""
    line = (
        f"disk: about {needed / 1e9:.1f} GB (two checkpoints with AdamW's moments and the result of each job, "
        f"from parameters{more}); {free / 1e9:.1f} GB are free"
    )
    return f"{line}: NOT ENOUGH" if needed > free else line


def study_estimate(jobs: Sequence[Job], output: Path, at_once: int, hardware: str) -> list[str]:
    """Returns the lines on time and disk of the study."""
    to_do = [job for job in jobs if not job.done]
    seconds = [job.seconds for job in to_do]
    time = duration(max([0.0, sum(seconds) / at_once, *seconds]))
    jobs_at_once = f"{at_once} job{'s' if at_once > 1 else ''} at once"
    return [
        f"{len(to_do)} of {len(jobs)} jobs to do",
        f"time: about {time} with {jobs_at_once}, from the seconds of a step in the budget ({hardware})",
        _disk(to_do, output),
    ]
