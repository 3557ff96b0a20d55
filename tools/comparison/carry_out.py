"""Carries out a comparison: the plan in words, rehearsals, runs, pictures, report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.training.cores import usable_cores
from pretrain.training.progress import duration
from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_folder
from splitmask_backbones.run_files import CONFIG, TABLE
from tools.comparison import drawings, report
from tools.comparison.inputs import places_of
from tools.comparison.plan import (
    NUM_PICTURES,
    PICTURES,
    RANDOM,
    SOURCE,
    Comparison,
    all_seconds,
    begun_runs,
    count_runs,
    first_jobs,
    further_jobs,
    picture_jobs,
    rehearsals,
    shown_jobs,
)
from tools.comparison.same_time import (
    check_same_time,
    longer_jobs,
    longer_runs,
    longer_seconds,
    pretraining_seconds,
    settle,
)
from tools.running.executor import Executor, carry_out, open_plan
from tools.running.job import Job
from tools.running.pictures import choose_pictures, remove_drawn

SIZES = ("embed_dim", "depth", "num_heads", "patch_size")
"""Arguments of an encoder that starts have to have in common."""


def compare(comparison: Comparison, pictures: Path | None, at_once: int, device: str, dry_run: bool) -> int:
    """Prints the plan, carries it out, writes what it found; returns the exit code.

    Args:
        pictures: folder of images to draw predictions on.
        at_once: runs at the same time.
        device: of every run.
        dry_run: print the plan alone.

    Raises:
        ValueError: something that the plan is made from is wrong, or the folder holds something else.
    """
    output, jobs = comparison.output, first_jobs(comparison)
    files = [] if pictures is None else choose_pictures(check_folder(pictures, "--pictures"), NUM_PICTURES)
    if pictures is not None and not files:
        raise UserError(f"--pictures {pictures}: no image there that can be read")
    _check_source(output, pictures)
    if comparison.same_time:
        check_same_time(comparison, at_once)
    threads = None if at_once == 1 else max(1, usable_cores() // at_once)
    executor = Executor(output, at_once, threads=threads, device=device)
    executor.check(jobs)
    _say([*_told(comparison), *(f"  {_state(job)}: {job.shown()}" for job in jobs)])
    if dry_run:
        return 0
    values = {"tool": comparison.tool, "data": places_of(comparison.argv)}
    config: dict[str, Any] = {"command": "compare", "values": values}
    with open_plan(output, TABLE, config) as folder:
        check_data(comparison)
        code = carry_out(executor, rehearsals(comparison))
        if code == 0:
            _check_sizes(comparison)
            folder.write_config(config)  # from here on the data are known to be good, and stay the same
            folder.start()
            seconds = (all_seconds(comparison) + longer_seconds(comparison)) / at_once
            _say([f"time: about {duration(seconds)} in all, by rehearsals"] if seconds else [])
            code = carry_out(executor, first_jobs(comparison))
            check_data(comparison)
            code = code or carry_out(executor, further_jobs(comparison))
            check_data(comparison)
            if code == 2 and len(comparison.rates) > 1:
                _say(["a rate at which a start does not train can be left out of --lr: what is finished is kept"])
            if code == 0 and comparison.same_time:
                settle(comparison)
                report.write_table(comparison, report.read(comparison))  # what follows may take longer than all before
                code = carry_out(executor, longer_jobs(comparison))
                check_data(comparison)
        if code == 0 and pictures is not None:
            report.write_table(comparison, report.read(comparison))  # a drawing may fail
            if not (output / PICTURES / SOURCE).exists():  # the pictures were removed, to draw others
                for job in shown_jobs(comparison).values():
                    remove_drawn(job.folder, NUM_PICTURES)
            drawing = [*shown_jobs(comparison).values(), *picture_jobs(comparison, files)]
            (output / PICTURES / SOURCE).write_text(f"{pictures.absolute()}\n", encoding="utf-8")
            code = carry_out(executor, drawing)
        if code == 0:
            _report(comparison, with_pictures=pictures is not None)
    return code


def _check_source(output: Path, pictures: Path | None) -> None:
    """Raises ValueError where predictions on other images were drawn: those of both would stand side by side."""
    file = output / PICTURES / SOURCE
    drawn = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if pictures is not None and drawn and drawn != str(pictures.absolute()):
        raise UserError(f"--pictures {pictures}: {output} has drawn those of {drawn}: use these, or another --output")


def _check_sizes(comparison: Comparison) -> None:
    """Raises ValueError where a start's encoder has another size than random init's: that would be compared as well."""
    sizes = {}
    begun = {start: job.folder / CONFIG for start, job in reversed(begun_runs(comparison))}
    for start in comparison.starts:  # one that had begun before has no rehearsal
        file = comparison.rehearsed(start).with_name(CONFIG)
        record = read_object(file if file.exists() else begun.get(start, file))
        encoder = record.get("encoder") or {}
        sizes[start] = {name: encoder[name] for name in SIZES if name in encoder}
    first, *others = comparison.starts
    for start in others:
        other = {name: value for name, value in sizes[start].items() if value != sizes[first].get(name, value)}
        if other:
            told = ", ".join(f"{name} {value} and not {sizes[first][name]}" for name, value in other.items())
            raise UserError(
                f"{start} has {told}: random init has the encoder that the config and your options name; name that of "
                "the file (such as encoder=vit_small, model.backbone.encoder=vit_small or --model vit_small), and use "
                "another --output where runs of it have begun"
            )


def check_data(comparison: Comparison) -> None:
    """Raises ValueError where two runs had other images or labels: they would differ in more than their start."""
    first: dict[tuple[object, ...], tuple[object, Path]] = {}
    for folder, share, seed in (*comparison.runs(), *longer_runs(comparison)):
        data = read_object(folder / CONFIG).get("data") or {}
        drawn_by = None if share == 1 else seed  # all labels are the same ones with every seed
        for split in (("val",), ("train", share, drawn_by)):
            value, other = first.setdefault(split, (data.get(split[0]), folder))
            if value != data.get(split[0]):
                raise UserError(
                    f"the {split[0]} images or labels have changed between {other} and {folder}: remove the folders of "
                    "the runs on the old ones and run the same command again, or choose another --output"
                )


def _state(job: Job) -> str:
    return "done" if job.done else "begun" if job.started else "to do"


def _told(comparison: Comparison) -> list[str]:
    """Returns what is compared, in lines."""
    seeds = f"{comparison.seeds} seed{'s' if comparison.seeds > 1 else ''} of each start"
    rates = [f"{rate:g}" for rate in comparison.rates if rate is not None]
    goes_on = ", each start goes on with the best one of seed 0" if len(rates) > 1 else ""
    times = pretraining_seconds(comparison) if comparison.same_time else {}
    longer = [
        f"{RANDOM} also in the time of {start}: {duration(seconds)} longer, for each of the above"
        for start, seconds in times.items()
    ]
    count = count_runs(comparison) + len(times) * len(comparison.settings) * comparison.seeds
    return [
        f"starts: {', '.join(comparison.starts)}",
        f"at: {'; '.join(map(comparison.title, comparison.settings))}",
        *longer,
        f"learning rates: {', '.join(rates) if rates else 'that of the config'}{goes_on}",
        f"{count} runs, {seeds}; those that are known:",
    ]


def _report(comparison: Comparison, with_pictures: bool) -> None:
    """Writes table, plot and pictures, and prints the table."""
    found = report.read(comparison)
    report.write_table(comparison, found)
    files = [comparison.output / TABLE, drawings.save_plot(comparison, found)]
    files += [drawings.save_pictures(comparison)] if with_pictures else []
    written = ", ".join(str(file) for file in files if file is not None)
    _say([(comparison.output / TABLE).read_text(encoding="utf-8").rstrip("\n"), f"written: {written}"])


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
