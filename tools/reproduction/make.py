"""A table of the paper or the small study, from the plan in words to the written tables. Free of torch."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.training.progress import duration
from pretrain.training.shortage import free_disk
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import TABLE, TABLE_CSV
from tools.common import plots
from tools.reproduction import cost, render, study_labels, study_report
from tools.reproduction.paper import tables
from tools.reproduction.paper.schema import Row, Table
from tools.reproduction.plan import Planner
from tools.reproduction.rehearse import rehearse
from tools.reproduction.results import fill, others, read_runs
from tools.reproduction.study import LONGER, ROWS, Study, missing, picture_jobs, study_jobs
from tools.running.executor import Executor, run_plan
from tools.running.job import Job


def needed_sets(rows: Sequence[Row]) -> list[str]:
    """Returns the data sets that some rows are measured on, or made from."""
    measured = [cell.measured for row in rows for cell in row.cells]
    origins = [m.origin for m in measured if m.origin.kind in ("pretrain", "supervised")]
    return sorted({m.data for m in measured} | {origin.data for origin in origins})


def make_table(
    table: Table,
    rows: Sequence[Row],
    planner: Planner,
    at_once: int,
    gpus: int,
    tflops: float | None,
    dry_run: bool,
    rehearses: bool = False,
    batch_sizes: Mapping[str, int] | None = None,
) -> int:
    """Prints the plan of some rows of a table, carries it out, writes the tables; returns the exit code.

    `at_once` counts jobs, `gpus` the processes of torchrun; without `tflops`, a GPU reaches what the paper's did.
    With `rehearses` the jobs are rehearsed and not carried out, in steps of `batch_sizes`, by tool.

    Raises:
        ValueError: something is missing, or the folder holds something else.
    """
    output, jobs = planner.output, planner.jobs(rows)
    title = table.title if len(rows) == len(table.rows) else f"{table.title}, row {rows[0].title}"
    lists = [
        f"list of the images of {name}: {file}, {'done' if file.exists() else 'written first'}"
        for name, file in planner.lists.items()
    ]
    _say([title, *lists, *_command_lines(jobs, gpus)])
    _say(table_estimate(jobs, output, tflops))
    if planner.missing:
        _say(["needed from you:", *(f"  {what}" for what in planner.missing)])
    executor = Executor(output, at_once, gpus=gpus, device=planner.device)
    executor.check(jobs)
    if dry_run:
        return 0
    if rehearses:
        return rehearse(title, jobs, planner, gpus, batch_sizes or {})
    if planner.missing:
        more = f" (and {len(planner.missing) - 1} more, see the plan)" if len(planner.missing) > 1 else ""
        raise UserError(f"{planner.missing[0]}{more}")
    config = {"command": "reproduce", "values": {"make": "tables"}}
    code = run_plan(executor, jobs, config, planner.write_lists)
    if code == 0:
        _write_tables(output, table)
    return code


def _write_tables(output: Path, asked: Table) -> None:
    """Writes table.md and table.csv of everything that is finished below the folder, and prints the table asked for."""
    runs = read_runs([output])
    taken: set[int] = set()
    filled = []
    for table in tables().values():
        cells, used = fill(table, runs)
        filled.append((table, cells))
        taken |= used
    for other in others(runs, taken):
        folders = ", ".join(str(run.folder) for run in other.runs)
        _say([f"no row of a table: {other.title} ({'; '.join(other.remarks) or 'complete'}): {folders}"])
    filled = [(table, cells) for table, cells in filled if cells or table.name == asked.name]
    write_atomically(output / TABLE, render.markdown(filled, []).encode())
    write_atomically(output / TABLE_CSV, render.comma_separated(filled, []).encode())
    shown = [(table, cells) for table, cells in filled if table.name == asked.name]
    if sys.stdout.isatty():
        render.show(shown, [])
    else:
        sys.stdout.write(render.markdown(shown, []))
    _say([f"tables: {output / 'table.md'}, {output / 'table.csv'}"])


def make_study(study: Study, at_once: int, dry_run: bool) -> int:
    """Prints the plan of a study, carries it out, writes table and pictures; returns the exit code.

    Raises:
        ValueError: data are missing, or the folder holds something else.
    """
    budget, output = study.budget, study.output
    jobs = study_jobs(study)
    planned = {row for data in study.sets for row in budget.rows[data]}
    left_out = [row for row, what in ROWS.items() if what.given and row in planned.difference(study.all_rows)]
    skipped = [f"row {row} ({ROWS[row].title}): skipped, --weights {row}=FILE gives its encoder" for row in left_out]
    _say([f"the small study, size {study.size}, {study.seeds} seeds", *_command_lines(jobs), *skipped])
    to_do = [job for job in jobs if not job.done]
    seconds = [job.seconds for job in to_do]
    time = duration(max([0.0, sum(seconds) / at_once, *seconds]))
    jobs_at_once = f"{at_once} job{'s' if at_once > 1 else ''} at once"
    told = f"time: about {time} with {jobs_at_once}, from the seconds of a step in the budget ({budget.hardware})"
    _say([f"{len(to_do)} of {len(jobs)} jobs to do", told, _disk(to_do, output)])
    longer = [data for data, rows in study.rows.items() if set(LONGER).intersection(rows)]
    if longer:
        more = {data: budget.finetuning_steps(data, LONGER[0]) - budget.finetune[data].steps for data in longer}
        told = " and ".join(f"{count} on {data}" for data, count in more.items())
        names = " and ".join(ROWS[row].title for row in LONGER if row in study.all_rows)
        _say([f"{names}: as many more steps as fit in the time of a pre-training: {told}"])
    executor = Executor(output, at_once, threads=1 if study.size == "cpu" else None, device=study.device)
    executor.check(jobs)
    needed = missing(study)
    if needed and dry_run:
        _say(["needed from you:", *(f"  {what}" for what in needed)])
    if dry_run:
        return 0
    if needed:
        raise UserError(needed[0])
    config = {"command": "reproduce", "values": {"make": f"study {study.size}"}}
    code = run_plan(executor, jobs + picture_jobs(study), config, lambda: study_report.choose_pictures(study))
    if code == 0:
        _report(study)
    return code


def _report(study: Study) -> None:
    output = study.output
    rows, shares = (
        study_report.finished_rows(output, study.all_rows),
        study_report.finished_shares(output, study.shares),
    )
    values = study_report.read_values(output, rows)
    few = study_report.read_curves(output, rows, shares)
    header, body = study_report.write_table(output, values, rows, few)
    study_labels.save_plot(few, output / study_report.FOLDER / "labels.png")
    study_report.save_points(values, rows, output / study_report.FOLDER / "points.png")
    study_report.save_grids(study)
    if sys.stdout.isatty():  # lengths stand in the file: a terminal is narrow
        width = 1 + len(values)
        plots.print_table("the small study", study_report.CAPTION, header[:width], [line[:width] for line in body])
    else:
        sys.stdout.write((output / TABLE).read_text(encoding="utf-8"))
    _say([f"table: {output / 'table.md'}, pictures: {output / study_report.FOLDER}"])


def _say(lines: Sequence[str]) -> None:
    """Prints a paragraph."""
    sys.stdout.write("".join(f"{line}\n" for line in lines) + "\n")
    sys.stdout.flush()


def _command_lines(jobs: Sequence[Job], gpus: int = 1) -> list[str]:
    """Returns a heading and the command of each job."""
    lines = []
    for number, job in enumerate(jobs, start=1):
        state = "done, skipped" if job.done else "begun, continues" if job.started else "to do"
        lines += [f"{number}. {job.name}: {state}", f"   {job.shown(gpus)}"]
    return lines


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
    free = free_disk(output)
    more = f"; {scratch / 1e9:.1f} GB of it for the features of a probe while it runs" if scratch else ""
    line = (
        f"disk: about {needed / 1e9:.1f} GB ({cost.NUM_CHECKPOINTS} checkpoints with AdamW's moments and the result of "
        f"each job, from parameters{more}); {free / 1e9:.1f} GB are free"
    )
    return f"{line}: NOT ENOUGH" if needed > free else line
