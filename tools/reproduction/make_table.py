"""A table of the paper, or one row of it, from the plan to table.md and table.csv."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from tools.reproduction import announce, render
from tools.reproduction.paper import tables
from tools.reproduction.paper.schema import Row, Table
from tools.reproduction.plan import Planner, parse_files
from tools.reproduction.results import fill, read_runs
from tools.reproduction.sets import Places
from tools.running.executor import Executor
from tools.running.folder import carry_out, open_plan


@dataclass(frozen=True)
class TableOptions:
    """What a user says beside the table.

    Attributes:
        data: roots and NAME=PATH of the data sets.
        weights: NAME=FILE of encoders that are there already.
        output: folder of everything.
        seeds: fine-tunings of each row.
        precision: of every training.
        workers: data processes.
        extra: further argv by the tool's name.
        gpus: processes of torchrun.
        at_once: jobs at the same time.
        tflops: what one GPU reaches; None for what the paper's reached.
        dry_run: print the plan and stop.
    """

    data: list[str]
    weights: list[str]
    output: Path
    seeds: int
    precision: str
    workers: int
    extra: dict[str, list[str]]
    gpus: int
    at_once: int
    tflops: float | None
    dry_run: bool


def make_table(table: Table, row: str, options: TableOptions) -> int:
    """Prints the plan of a row (of all rows for ""), carries it out, writes the tables; returns the exit code.

    Raises:
        ValueError: unknown names, something is missing, or the folder holds something else.
    """
    rows: list[Row] = [table.row(row)] if row else list(table.rows)
    measured = [cell.measured for chosen in rows for cell in chosen.cells]
    origins = [m.origin for m in measured if m.origin.kind in ("pretrain", "supervised")]
    output = options.output
    places = Places(options.data, sorted({m.data for m in measured} | {origin.data for origin in origins}))
    files = parse_files(options.weights)
    planner = Planner(output, places, files, options.seeds, options.precision, options.workers, options.extra)
    jobs = planner.jobs(rows)
    title = f"{table.title}, row {rows[0].title}" if row else table.title
    lines = [*announce.list_lines(planner.lists), *announce.command_lines(jobs, options.gpus)]
    announce.say([title, *lines])
    announce.say(announce.table_estimate(jobs, output, options.tflops))
    if planner.missing:
        announce.say(["needed from you:", *(f"  {what}" for what in planner.missing)])
    executor = Executor(output, options.at_once, gpus=options.gpus)
    executor.check(jobs)
    if options.dry_run:
        return 0
    if planner.missing:
        more = f" (and {len(planner.missing) - 1} more, see the plan)" if len(planner.missing) > 1 else ""
        raise UserError(f"{planner.missing[0]}{more}")
    config = {"command": "reproduce", "values": {"make": "tables"}}
    with open_plan(output, "steps.json", config) as folder:
        folder.write_config(config)
        planner.write_lists()
        folder.start()
        code = carry_out(executor, jobs)
    if code == 0:
        _write_tables(output, table)
    return code


def _write_tables(output: Path, asked: Table) -> None:
    """Writes table.md and table.csv of everything that is finished below the folder, and prints the table asked for."""
    runs = read_runs([output])
    filled = [(table, fill(table, runs)[0]) for table in tables().values()]
    filled = [(table, cells) for table, cells in filled if cells or table.name == asked.name]
    write_atomically(output / "table.md", render.markdown(filled, []).encode())
    write_atomically(output / "table.csv", render.comma_separated(filled, []).encode())
    shown = [(table, cells) for table, cells in filled if table.name == asked.name]
    if sys.stdout.isatty():
        render.show(shown, [])
    else:
        sys.stdout.write(render.markdown(shown, []))
    announce.say([f"tables: {output / 'table.md'}, {output / 'table.csv'}"])
