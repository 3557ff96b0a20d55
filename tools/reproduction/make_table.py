"""A table of the paper, or one row of it, from the plan to table.md and table.csv."""

import sys
from collections.abc import Sequence
from pathlib import Path

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from tools.reproduction import announce, render
from tools.reproduction.paper import tables
from tools.reproduction.paper.schema import Row, Table
from tools.reproduction.plan import Planner
from tools.reproduction.results import fill, read_runs
from tools.running.executor import Executor
from tools.running.folder import run_plan


def needed_sets(rows: Sequence[Row]) -> list[str]:
    """Returns the data sets that some rows are measured on, or made from."""
    measured = [cell.measured for row in rows for cell in row.cells]
    origins = [m.origin for m in measured if m.origin.kind in ("pretrain", "supervised")]
    return sorted({m.data for m in measured} | {origin.data for origin in origins})


def make_table(
    table: Table, rows: Sequence[Row], planner: Planner, at_once: int, gpus: int, tflops: float | None, dry_run: bool
) -> int:
    """Prints the plan of some rows of a table, carries it out, writes the tables; returns the exit code.

    Args:
        table: that is made.
        rows: of it.
        planner: knows data, weights and options.
        at_once: jobs at the same time.
        gpus: processes of torchrun.
        tflops: what one GPU reaches; None for what the paper's reached.
        dry_run: print the plan and stop.

    Raises:
        ValueError: something is missing, or the folder holds something else.
    """
    output, jobs = planner.output, planner.jobs(rows)
    title = table.title if len(rows) == len(table.rows) else f"{table.title}, row {rows[0].title}"
    announce.say([title, *announce.list_lines(planner.lists), *announce.command_lines(jobs, gpus)])
    announce.say(announce.table_estimate(jobs, output, tflops))
    if planner.missing:
        announce.say(["needed from you:", *(f"  {what}" for what in planner.missing)])
    executor = Executor(output, at_once, gpus=gpus)
    executor.check(jobs)
    if dry_run:
        return 0
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
