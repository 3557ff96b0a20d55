"""Runs what a table of the paper needs, or the small study: prints the plan first, skips what is done, goes on."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError, check_choice, nearest
from tools import cli
from tools.reproduction.paper import find_table, tables
from tools.reproduction.paper.schema import Row, Table

STUDY = "small"
STUDY_TITLE = "nuclei and CamVid: SplitMask against BEiT, DINO and random init"
SIZES = ("cpu", "gpu")
TOOLS = ("pretrain", "train_det", "train_seg", "train_cls", "probe")
EPILOG = """The same command goes on after an interruption (Ctrl-C, SIGTERM, kill -9, a failed step): what is finished
is skipped, what was begun continues. Each step writes what it says to DIR/logs/, the table goes to DIR/table.md.

data of a table: --data ROOT with a folder for each set (coco, ade20k, imagenet, inat18, inat19, food101, cars,
domainnet), or NAME=PATH for each; where a row needs one set only, ROOT may be that set itself.
weights of others: --weights deit_small=FILE, deit_base, beit_base, dino_small, dino_base, mocov3_base, and dalle=FILE
for DALL-E's words; the name of a pre-training (see the plan), such as coco_splitmask_vit_small=FILE, takes an encoder
that you have already.

examples:
  python tools/reproduce.py small --data ../shared/data --dry-run
  python tools/reproduce.py coco/vit_small_splitmask_coco --data COCO --gpus 8 --dry-run
  python tools/reproduce.py finetuning --data ROOT --weights deit_small=deit.pth --weights dalle=dalle.safetensors"""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    listed = "\n".join(
        f"  {table.name:12}{table.title}\n  {'':12}rows: {', '.join(row.name for row in table.rows)}"
        for table in tables().values()
    )
    parser = cli.Parser(
        prog="tools/reproduce.py",
        description=__doc__,
        epilog=f"tables:\n  {STUDY:12}{STUDY_TITLE}\n{listed}\n\n{EPILOG}",
    )
    parser.add_argument("table", metavar="TABLE[/ROW]", help="what to make, see the list below")
    parser.add_argument(
        "--data", action="append", default=[], metavar="ROOT|NAME=PATH", help="where the images are; may be repeated"
    )
    parser.add_argument("--output", metavar="DIR", help="default runs/reproduce, of the study runs/study_SIZE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--seeds",
        type=cli.positive_int,
        metavar="N",
        help="fine-tunings of each row on one pre-training (default 1); of the study: whole rows (default: the size's)",
    )
    parser.add_argument("--workers", type=cli.non_negative_int, metavar="N", help="data processes of each step")
    parser.add_argument(
        "--jobs",
        type=cli.positive_int,
        metavar="N",
        help="steps at once (default 1; of the study the cores, on a GPU 3)",
    )
    table = parser.add_argument_group("tables of the paper")
    table.add_argument("--weights", action="append", default=[], metavar="NAME=FILE", help="files that you have")
    table.add_argument("--gpus", type=cli.positive_int, metavar="N", help="processes of torchrun (default 1)")
    table.add_argument("--precision", metavar="32|bf16", help="of every training (default bf16)")
    table.add_argument(
        "--tflops", type=cli.positive_float, metavar="F", help="what one GPU reaches, as tools/benchmark.py measures it"
    )
    for tool in TOOLS:
        name = tool.replace("_", "-")
        table.add_argument(f"--{name}-options", default="", metavar='"..."', help=f"further options of tools/{tool}.py")
    study = parser.add_argument_group("the small study")
    study.add_argument("--size", metavar="|".join(SIZES), help="(default: gpu where there is one)")
    study.add_argument("--rows", metavar="A,B", help="some of the size's rows, or others; ablation: each value in turn")
    study.add_argument("--sets", metavar="A,B", help="some of the data sets: nuclei, camvid (default both)")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(_joined(argv))
    name, _, row = args.table.partition("/")
    if name != STUDY and name not in tables():
        raise UserError(f"unknown table '{name}': {nearest(name, [STUDY, *tables()])}")
    if args.precision is not None:
        check_choice("--precision", args.precision, ("32", "bf16"))
    if not all(args.data):
        raise UserError("--data is empty: name the folder that holds the data sets")
    if not args.data:
        raise UserError("--data ROOT is missing: name the folder that holds the data sets")
    if name == STUDY:
        return _study(args, row)
    return _table(args, find_table(name), row)


def _joined(argv: list[str]) -> list[str]:
    """Returns the words with the value of --TOOL-options joined to it: it may begin with a dash itself."""
    names = {f"--{tool.replace('_', '-')}-options" for tool in TOOLS}
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        words.append(f"{word}={rest.pop(0)}" if word in names and rest else word)
    return words


def _table(args: argparse.Namespace, table: Table, row: str) -> int:
    from tools.reproduction import announce
    from tools.reproduction.executor import Executor
    from tools.reproduction.plan import Planner, parse_files
    from tools.reproduction.sets import Places

    if args.size is not None or args.rows is not None or args.sets is not None:
        raise UserError(
            f"--size, --rows and --sets go with {STUDY}: a row of a table is {table.name}/{table.rows[0].name}"
        )
    rows: list[Row] = [table.row(row)] if row else list(table.rows)
    measured = [cell.measured for chosen in rows for cell in chosen.cells]
    needed = {m.data for m in measured} | {
        m.origin.data for m in measured if m.origin.kind in ("pretrain", "supervised")
    }
    output, gpus = Path(args.output or "runs/reproduce"), args.gpus or 1
    planner = Planner(
        output,
        Places(args.data, sorted(needed)),
        parse_files(args.weights),
        args.seeds or 1,
        args.precision or "bf16",
        2 if args.workers is None else args.workers,
        {tool: _words(getattr(args, f"{tool}_options"), tool) for tool in TOOLS},
    )
    steps = planner.steps(rows)
    _say([f"{table.title}, row {rows[0].title}" if row else table.title, *announce.command_lines(steps, gpus)])
    _say(announce.table_estimate(steps, output, args.tflops))
    if planner.missing:
        _say(["needed from you:", *(f"  {what}" for what in planner.missing)])
    Executor(output).check(steps)
    if args.dry_run:
        return 0
    if planner.missing:
        more = f" (and {len(planner.missing) - 1} more, see the plan)" if len(planner.missing) > 1 else ""
        raise UserError(f"{planner.missing[0]}{more}")
    _tools_are_there(steps)
    code = _run(args, output, steps, {"make": "tables"}, jobs=args.jobs or 1, threads=None, gpus=gpus)
    if code == 0:
        _write_table(output, table)
    return code


def _words(text: str, tool: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{tool.replace('_', '-')}-options {text}: {error}: check the quotation marks") from None


def _tools_are_there(steps: list[Any]) -> None:
    from tools.reproduction.executor import ROOT

    for step in steps:
        if step.tool.endswith(".py") and not (ROOT / "tools" / step.tool).is_file():
            raise UserError(
                f"{step.name} needs tools/{step.tool}, which this version does not have: choose another row"
            )


def _write_table(output: Path, table: Table) -> None:
    """Writes table.md and table.csv of everything that is finished below the folder."""
    from splitmask_backbones.files import write_atomically
    from tools.reproduction import render
    from tools.reproduction.results import comparable, fill
    from tools.reproduction.runs import find_runs

    runs, warnings = find_runs([output])
    runs, more = comparable(runs)
    for warning in [*warnings, *more]:
        sys.stderr.write(f"warning: {' '.join(warning.split())}\n")
    filled = [(found, fill(found, runs)[0]) for found in tables().values()]
    filled = [(found, cells) for found, cells in filled if cells or found is table]
    write_atomically(output / "table.md", render.markdown(filled, []).encode())
    write_atomically(output / "table.csv", render.comma_separated(filled, []).encode())
    shown = [(found, cells) for found, cells in filled if found is table or found.name == table.name]
    if sys.stdout.isatty():
        render.show(shown, [])
    else:
        sys.stdout.write(render.markdown(shown, []))
    _say([f"tables: {output / 'table.md'}, {output / 'table.csv'}"])


def _study(args: argparse.Namespace, row: str) -> int:
    from tools.reproduction import announce, study
    from tools.reproduction.executor import Executor

    if len(args.data) > 1 or args.weights or any(getattr(args, f"{tool}_options") for tool in TOOLS):
        raise UserError(f"{STUDY} takes one --data ROOT and neither --weights nor --TOOL-options")
    if args.gpus is not None or args.precision is not None or args.tflops is not None:
        raise UserError(f"--gpus, --precision and --tflops go with the tables of the paper: {STUDY} has its own")
    if row and args.rows:
        raise UserError("--rows and a row after the slash exclude each other: give one of them")
    if args.size is not None:
        check_choice("--size", args.size, SIZES)
    rows = _names(row or args.rows, "row of the study", (*study.ROWS, "ablation"))
    sets = _names(args.sets, "data set of the study", tuple(study.HEADS)) or tuple(study.HEADS)
    if "ablation" in rows:
        rows = ("random", "full", *study.ABLATION, *rows)
    size = args.size or ("gpu" if _has_gpu() else "cpu")
    budget = study.BUDGETS[size]
    rows = tuple(name for name in study.ROWS if name in (rows or budget.rows))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Such a small model leaves most of a GPU idle: several jobs share it, as far as there are cores for their data.
    jobs = args.jobs or (cores if size == "cpu" else max(1, min(3, cores // 4)))
    # A process of its own for the data would take the core of the next job.
    workers = args.workers if args.workers is not None else 0 if size == "cpu" else max(1, min(8, cores // jobs - 1))
    root, output = Path(args.data[0]), Path(args.output or f"runs/study_{size}")
    seeds = args.seeds or budget.seeds
    steps = study.study_steps(budget, root, output, workers, rows, seeds, sets)
    _say([f"the small study, size {size}, {seeds} seeds", *announce.command_lines(steps)])
    _say(announce.study_estimate(steps, output, jobs, budget.hardware))
    if study.LONGER in rows:
        more = {data: budget.updates(data, study.LONGER) - budget.updates(data, "random") for data in sets}
        told = " and ".join(f"{count} on {data}" for data, count in more.items())
        _say([f"{study.ROWS[study.LONGER].title}: as many more updates as fit in the time of a pre-training: {told}"])
    Executor(output).check(steps)
    if args.dry_run:
        return 0
    from tools.reproduction import study_report

    study_report.choose_pictures(root, output, sets)
    steps += study.picture_steps(output, rows, sets)
    values = {"make": f"study {size}"}
    code = _run(args, output, steps, values, jobs=jobs, threads=1 if size == "cpu" else None, gpus=1)
    if code == 0:
        _report(output, rows, sets, budget)
    return code


def _names(text: str | None, what: str, choices: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else ()
    for name in names:
        check_choice(what, name, choices)
    return names


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _report(output: Path, asked: tuple[str, ...], sets: tuple[str, ...], budget: Any) -> None:
    from tools.finetuning import plots
    from tools.reproduction import study_report

    rows = study_report.finished_rows(output, asked)
    values = study_report.read_values(output, rows)
    header, body = study_report.write_table(output, values, rows, budget)
    study_report.save_points(values, rows, output / study_report.FOLDER / "points.png")
    study_report.save_grids(output, asked, sets)
    if sys.stdout.isatty():  # lengths stand in the file: a terminal is narrow
        width = 1 + len(values)
        plots.print_table("the small study", study_report.CAPTION, header[:width], [line[:width] for line in body])
    else:
        sys.stdout.write((output / "table.md").read_text(encoding="utf-8"))
    _say([f"table: {output / 'table.md'}, pictures: {output / study_report.FOLDER}"])


def _run(
    args: argparse.Namespace,
    output: Path,
    steps: list[Any],
    values: dict[str, Any],
    *,
    jobs: int,
    threads: int | None,
    gpus: int,
) -> int:
    """Runs the steps while the folder is locked; returns the exit code."""
    from pretrain.training.run_folder import CONFIG, LOCK, RunFolder
    from tools.demos.steps import StepError
    from tools.reproduction.executor import Executor

    begun = (output / CONFIG).exists() or (output / LOCK).exists()
    with RunFolder.open(output, resume=begun, artefact="steps.json") as folder:
        if folder.previous is not None and folder.previous.get("command") != "reproduce":
            raise UserError(f"--output {output} holds another run ({CONFIG}): choose another folder")
        try:
            folder.write_config({"command": "reproduce", "values": values})
        except UserError as error:  # here a run is resumed without the option
            raise UserError(str(error).removeprefix("--resume: ")) from None
        folder.start()
        try:
            Executor(output, jobs, threads, gpus).run(steps)
        except StepError as error:
            if error.line is not None:
                sys.stderr.write(f"{error.line}\n")
            else:
                _say(["stopped: the same command continues from here"])
            return error.code
    return 0


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(main)
