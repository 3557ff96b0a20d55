"""The plan in words, before anything runs: commands, what is done, GPU hours, disk. Free of torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tools.reproduction import cost
from tools.reproduction.progress import duration
from tools.reproduction.step import Step


def command_lines(steps: Sequence[Step], gpus: int = 1) -> list[str]:
    """Returns a heading and the command of each step."""
    lines = []
    for number, step in enumerate(steps, start=1):
        state = "done, skipped" if step.done else "begun, continues" if step.started else "to do"
        lines += [f"{number}. {step.name}: {state}", f"   {step.shown(gpus)}"]
    return lines


def table_estimate(steps: Sequence[Step], output: Path, tflops: float | None) -> list[str]:
    """Returns the lines on GPU hours and disk of a table's plan, and which figures they come from."""
    to_do = [step for step in steps if not step.done]
    rate = cost.paper_rate() if tflops is None else tflops * 1e12
    hours = {step.name: step.operations / rate / 3600 for step in to_do}
    parts: dict[str, float] = {}
    for step in to_do:
        kind = step.tool.removesuffix(".py")
        parts[kind] = parts.get(kind, 0.0) + hours[step.name]
    split = ", ".join(f"{kind} {_hours(value)}" for kind, value in parts.items() if value)
    source = (
        f"from counted operations at {rate / 1e12:.0f} TFLOP/s a GPU, what the paper's {cost.PAPER_HOURS:.1f} hours on "
        f"{cost.PAPER_GPUS} GPUs for SplitMask, ViT-B, ImageNet, {cost.PAPER_EPOCHS} epochs come to; "
        "--tflops F counts with what your GPU reaches"
        if tflops is None
        else f"from counted operations at --tflops {tflops:g} a GPU"
    )
    lines = [
        f"{len(to_do)} of {len(steps)} steps to do",
        f"GPU hours: about {_hours(sum(hours.values()))}{f' ({split})' if split else ''}, {source}",
    ]
    return [*lines, _disk(to_do, output)]


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _disk(to_do: Sequence[Step], output: Path) -> str:
    scratch = max((step.scratch for step in to_do), default=0.0)
    needed = sum(step.disk for step in to_do) + scratch
    place = output.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    more = f"; {scratch / 1e9:.1f} GB of it for the features of a probe while it runs" if scratch else ""
    line = (
        f"disk: about {needed / 1e9:.1f} GB (two checkpoints with AdamW's moments and the result of each step, "
        f"from parameters{more}); {free / 1e9:.1f} GB are free"
    )
    return f"{line}: NOT ENOUGH" if needed > free else line


def study_estimate(steps: Sequence[Step], output: Path, jobs: int, hardware: str) -> list[str]:
    """Returns the lines on time and disk of the study."""
    to_do = [step for step in steps if not step.done]
    seconds = sum(step.seconds for step in to_do)
    longest = max((step.seconds for step in to_do), default=0.0)
    return [
        f"{len(to_do)} of {len(steps)} steps to do",
        f"time: about {duration(max(longest, seconds / jobs))} with {jobs} job{'s' if jobs > 1 else ''} at once, from "
        f"the seconds of an update in the budget ({hardware})",
        _disk(to_do, output),
    ]
