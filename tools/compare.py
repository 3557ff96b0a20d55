"""Which start is best for your data? Fine-tunes from each, alike, and says by how much one is ahead of another.

Random init is always among them, and the others are told against it. Each start is tried with each --lr (seed 0), and
goes on with its own best one.
"""

import _path  # noqa: F401
import argparse
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError, check_choice
from tools import cli
from tools.comparison.inputs import check_options, check_spelling, read_starts
from tools.comparison.plan import DRAWS, NONE, NUM_PICTURES, RANDOM, Comparison, Setting, first_jobs
from tools.running.scores import SCORES

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
    same_time = "fine-tune random init also for as long as each pre-training took: what else to do with that time"
    parser.add_argument("--same-time", action="store_true", help=same_time)
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
    check_options(tool, rest, args.labels)
    check_spelling(tool, rest, parser)
    if args.pictures is not None and tool not in DRAWS:
        raise UserError(f"--pictures goes with {' and '.join(DRAWS)}: {tool} draws nothing")
    from tools.comparison.carry_out import compare
    from tools.running.planned import config_of, planned_values, without_config

    config = config_of(tool, rest)
    starts = {RANDOM: NONE, **read_starts(args.weights)}
    settings = tuple(Setting(share, steps) for share in args.labels for steps in args.steps)
    common = tuple(without_config(tool, rest, config))
    comparison = Comparison(
        tool, config, common, starts, settings, tuple(args.lr), args.seeds, Path(args.output), args.same_time
    )
    for job in first_jobs(comparison):
        planned_values(job.tool, job.argv)  # what the tool says of an option comes before anything runs
    pictures = None if args.pictures is None else Path(args.pictures)
    return compare(comparison, pictures, args.jobs, args.device, args.dry_run)


if __name__ == "__main__":
    cli.run(main)
