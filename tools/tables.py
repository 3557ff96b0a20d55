"""Prints the paper's tables with the values of your finished runs: paper, ours, seeds, and every deviation."""

import _path  # noqa: F401
import sys
from pathlib import Path

from splitmask_backbones.errors import UserError
from tools import cli
from tools.reproduction.paper import find_table, tables

FORMATS = ("markdown", "csv")
EPILOG = """Runs are folders with the config.json and results.json of train_det, train_seg, train_cls or probe, at any
depth below RUNS_DIR; pre-trainings give the hours. A run belongs to a row by its config or recipe and by where its
encoder comes from, which is found by the digest of the weights. Broken runs are named and left out.
On a terminal the tables are drawn; elsewhere, and in --output, they are Markdown or CSV."""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    listed = "\n".join(f"  {table.name:12}{table.title}" for table in tables().values())
    parser = cli.Parser(prog="tools/tables.py", description=__doc__, epilog=f"tables:\n{listed}\n\n{EPILOG}")
    parser.add_argument("runs", nargs="+", metavar="RUNS_DIR", help="folders that hold runs, at any depth")
    parser.add_argument("--table", metavar="NAME", help="one table (default: those with runs)")
    parser.add_argument(
        "--format", type=cli.choice("format", FORMATS), metavar="|".join(FORMATS), help="(default markdown)"
    )
    parser.add_argument("--output", metavar="FILE", help="write the tables there as well")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    cli.start_log()
    if args.table is not None:
        find_table(args.table)  # an unknown name is told at once
    output = None if args.output is None else Path(args.output)
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"--output {output} cannot be written: name a file in a folder that exists")
    from tools.reproduction import render
    from tools.reproduction.results import fill, others, read_runs

    runs = read_runs([Path(name) for name in args.runs])
    filled, used = [], set()
    for table in tables().values():
        cells, taken = fill(table, runs)
        used |= taken
        if cells if args.table is None else table.name == args.table:
            filled.append((table, cells))
    found = others(runs, used) if args.table is None else []
    make = render.comma_separated if args.format == "csv" else render.markdown
    text = make(filled, found)
    if output is not None:
        from splitmask_backbones.files import write_atomically

        write_atomically(output, text.encode("utf-8"))
    if sys.stdout.isatty() and args.format is None:
        render.show(filled, found)
    else:
        sys.stdout.write(text)
    if not filled and not found:
        sys.stdout.write("no finished run of a detector, segmentor, classifier or probe\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
