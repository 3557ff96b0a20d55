"""Which start is best for your data? Fine-tunes from each, alike, and says by how much one is ahead of another.

Random init is always among them, and the others are told against it. Each start is tried with each --lr (seed 0), and
goes on with its own best one.
"""

import _path  # noqa: F401
import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.training.cores import usable_cores
from pretrain.training.progress import duration
from splitmask_backbones.errors import UserError, check_choice
from tools import cli, plots
from tools.comparison.plan import (
    DRAWS,
    NONE,
    NUM_PICTURES,
    RANDOM,
    TABLE,
    Comparison,
    Setting,
    all_seconds,
    count_runs,
    first_jobs,
    further_jobs,
    picture_jobs,
    rehearsals,
    shown_jobs,
)
from tools.running.executor import Executor, carry_out, open_plan
from tools.running.job import ENCODER, Job
from tools.running.scores import SCORES

OWN = ("--resume", "--rehearse", "--eval-only", "--predict", "--best", "--seed", "--epochs")
"""Options of the tools that a comparison sets itself, or that would make its runs something else."""
USAGE = "tools/compare.py TOOL [CONFIG] --data ROOT --weights [NAME=]FILE --output DIR [options] [options of TOOL]"
EPILOG = """TOOL is train_det, train_seg or train_cls; whatever is not an option of this tool goes to each of its runs:
--data, --batch-size, key=value and the rest are those of TOOL. Random init has the encoder that these name: the others
have to be of its size.

The same command goes on after an interruption; with more --seeds, --lr, --labels or --steps it makes what is new. Each
run writes what it says to DIR/logs/. The result is DIR/table.md (and table.csv, pictures/comparison.png).

examples:
  python tools/compare.py train_det det_configs/nuclei_tiny.py --data MY_COCO --weights runs/mine/encoder.safetensors \\
      --labels 0.1,1 --steps 400,1600 --lr 5e-4,1e-3,2e-3 --output runs/compare --dry-run
  python tools/compare.py train_seg seg_configs/folder_20k_vit_small.py --data MY_SEG \\
      --weights mine=runs/mine/encoder.safetensors --weights deit=runs/deit/encoder.safetensors --output runs/compare"""


def build_parser() -> cli.Parser:
    """Returns the parser of what is not passed on."""
    parser = cli.Parser(prog="tools/compare.py", usage=USAGE, description=__doc__, epilog=EPILOG)
    weights = "an encoder.safetensors to compare, and what to call it; may be repeated"
    parser.add_argument("--weights", action="append", required=True, metavar="[NAME=]FILE", help=weights)
    cli.add_output(parser)
    labels = "shares of the labels, nested and drawn by the seed (default 1: all)"
    parser.add_argument(
        "--labels", type=_list("a share above 0 and up to 1", 1.0), default=[1.0], metavar="A,B", help=labels
    )
    steps = "lengths of fine-tuning (default the config's): what a start is worth depends on it"
    parser.add_argument("--steps", type=_list("a whole number above 0"), default=[None], metavar="A,B", help=steps)
    rates = "peak learning rates to try with each start (default the config's alone)"
    parser.add_argument("--lr", type=_list("a number above 0"), default=[None], metavar="A,B", help=rates)
    seeds = "fine-tunings of each start at its best rate (default 3)"
    parser.add_argument("--seeds", type=cli.positive_int, default=3, metavar="N", help=seeds)
    pictures = f"draw what each start predicts for {NUM_PICTURES} of these images"
    parser.add_argument("--pictures", metavar="DIR", help=pictures)
    parser.add_argument("--jobs", type=cli.positive_int, default=1, metavar="N", help="runs at once (default 1)")
    cli.add_device(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


def _list(what: str, most: float = float("inf")) -> Any:
    """Returns a type for argparse: numbers with commas between, ascending, each once."""
    kind = int if "whole" in what else float

    def parse(text: str) -> list[Any]:
        try:
            found = sorted({kind(part) for part in text.split(",")})
        except ValueError:
            found = [0]
        if not all(0 < number <= most for number in found):
            raise argparse.ArgumentTypeError(f"'{text}' must be {what}, or several with commas between")
        return found

    return parse


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    parser = build_parser()
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    args, rest = parser.parse_known_args([cli.with_home(text) for text in argv])
    cli.start_log()
    if not rest:
        raise UserError(f"TOOL is missing: {', '.join(SCORES)}; see {parser.prog} --help")
    tool, *rest = rest
    check_choice("tool", tool, tuple(SCORES))
    given = [option for option in OWN if any(text.split("=")[0] == option for text in rest)]
    if given:
        raise UserError(f"{given[0]} cannot be given to all runs of a comparison: omit it")
    if args.labels != [1.0] and tool == "train_cls":
        raise UserError("--labels goes with train_det and train_seg: train_cls takes a list of its training images")
    if args.pictures is not None and tool not in DRAWS:
        raise UserError(f"--pictures goes with {' and '.join(DRAWS)}: {tool} draws nothing")
    from tools.running.planned import config_of, planned_values

    config = config_of(tool, rest)
    starts = {RANDOM: NONE, **_starts(args.weights)}
    settings = tuple(Setting(share, steps) for share in args.labels for steps in args.steps)
    common = tuple(text for text in rest if text != config)
    comparison = Comparison(tool, config, common, starts, settings, tuple(args.lr), args.seeds, Path(args.output))
    for job in first_jobs(comparison):
        planned_values(job.tool, job.argv)  # what the tool says of an option comes before anything runs
    return _compare(comparison, args)


def _starts(given: Sequence[str]) -> dict[str, str]:
    """Returns the encoder files by name; one without a name is called by its run's folder, or by its own name.

    Raises:
        ValueError: a file that is not there, or two of one name.
    """
    starts: dict[str, str] = {}
    for text in given:
        name, equals, file = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        path = Path(file)
        if file == NONE:
            raise UserError(f"--weights {text}: {RANDOM} is always compared: omit it")
        if not path.is_file():
            raise UserError(f"--weights {text}: {file} does not exist or is not a file")
        name = name if equals else path.absolute().parent.name if path.name == ENCODER else path.stem
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--weights {text}: a name has letters, digits, dots and dashes only, got '{name}'")
        if name in starts:
            raise UserError(f"--weights: two are called {name}: give them names, such as mine={file}")
        starts[name] = file
    return starts


def _compare(comparison: Comparison, args: Any) -> int:
    """Prints the plan, carries it out, writes what it found; returns the exit code."""
    output, jobs = comparison.output, first_jobs(comparison)
    pictures = [] if args.pictures is None else _pictures(Path(args.pictures))
    cores = usable_cores()
    threads = None if args.jobs == 1 else max(1, cores // args.jobs)
    executor = Executor(output, args.jobs, threads=threads, device=args.device)
    executor.check(jobs)
    _say_plan(comparison, jobs)
    if args.dry_run:
        return 0
    with open_plan(output, TABLE, {"command": "compare", "values": {"tool": comparison.tool}}) as folder:
        folder.write_config({"command": "compare", "values": {"tool": comparison.tool}})
        folder.start()
        code = carry_out(executor, rehearsals(comparison))
        if code == 0:
            seconds = all_seconds(comparison) / args.jobs
            sys.stdout.write(f"time: about {duration(seconds)} in all, by rehearsals\n" if seconds else "")
            code = carry_out(executor, first_jobs(comparison)) or carry_out(executor, further_jobs(comparison))
        if code == 0 and pictures:
            code = carry_out(executor, [*shown_jobs(comparison).values(), *picture_jobs(comparison, pictures)])
        if code == 0:
            _report(comparison, bool(pictures))
    return code


def _say_plan(comparison: Comparison, jobs: Sequence[Job]) -> None:
    """Prints what is compared and the runs that are known."""
    names = ", ".join(comparison.starts)
    rates = [f"{rate:g}" for rate in comparison.rates if rate is not None]
    lines = [
        f"starts: {names}",
        f"at: {'; '.join(map(comparison.title, comparison.settings))}",
        f"learning rates: {', '.join(rates) if rates else 'that of the config'}"
        + (", each start goes on with the best one of seed 0" if len(rates) > 1 else ""),
        f"{count_runs(comparison)} runs, {comparison.seeds} seed{'s' if comparison.seeds > 1 else ''} of each start",
    ]
    lines += [f"  {'done' if job.done else 'begun' if job.started else 'to do'}: {job.shown()}" for job in jobs]
    lines += ["then: further seeds at each start's best rate"] if len(rates) > 1 and comparison.seeds > 1 else []
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _pictures(folder: Path) -> list[Path]:
    """Returns NUM_PICTURES readable images of a folder, spread evenly over it.

    Raises:
        ValueError: there are none.
    """
    from pretrain.data.sources import ImageList, find_images

    images = ImageList(folder, find_images(folder)[0] if folder.is_dir() else [])
    readable = [images.path(name) for number, name in enumerate(images.names) if images.is_readable(number)]
    if not readable:
        raise UserError(f"--pictures {folder}: no image there that can be read")
    count = min(NUM_PICTURES, len(readable))
    return [readable[number * len(readable) // count] for number in range(count)]


def _report(comparison: Comparison, pictures: bool) -> None:
    """Writes table, plot and pictures, and prints the table."""
    from tools.comparison import report

    found = report.read(comparison)
    header, body = report.write_table(comparison, found)
    files = [comparison.output / TABLE, report.save_plot(comparison, found)]
    files += [report.save_pictures(comparison)] if pictures else []
    if sys.stdout.isatty():
        plots.print_table("which start", report.CAPTION, header, body)
        sys.stdout.write("".join(f"- {text}\n" for text in report.sentences(comparison, found)))
    else:
        sys.stdout.write((comparison.output / TABLE).read_text(encoding="utf-8"))
    sys.stdout.write(f"written: {', '.join(str(file) for file in files if file is not None)}\n")


if __name__ == "__main__":
    cli.run(main)
