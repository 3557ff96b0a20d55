"""Runs what a table of the paper needs, or the small study: prints the plan first, skips what is done, goes on."""

import _path  # noqa: F401
import shlex
from pathlib import Path
from typing import Any

from pretrain.training.cores import usable_cores
from splitmask_backbones.errors import UserError, check_choice, nearest
from tools import cli
from tools.reproduction.paper import find_table, tables

STUDY = "small"
STUDY_TITLE = "nuclei and CamVid: SplitMask against BEiT, DINO and random init"
SIZES = ("cpu", "gpu")
TOOLS = ("pretrain", "train_det", "train_seg", "train_cls", "probe")
EPILOG = """The same command goes on after an interruption (Ctrl-C, SIGTERM, kill -9, a failed job): what is finished
is skipped, what was begun continues. Each job writes what it says to DIR/logs/, the table goes to DIR/table.md.

data of a table: --data ROOT with a folder for each set (coco, ade20k, imagenet, inat18, inat19, food101, cars,
domainnet), or NAME=PATH for each; where a row needs one set only, ROOT may be that set itself.
weights of others: --weights deit_small=FILE, deit_base, beit_base, dino_small, dino_base, mocov3_base, and dalle=FILE
for DALL-E's encoder; the name of a pre-training (see the plan), such as coco_splitmask_vit_small=FILE, takes an encoder
that you have already. The study takes imagenet=FILE: DeiT-Ti's, for a row of its own.

examples:
  python tools/reproduce.py small --dry-run
  python tools/reproduce.py coco/vit_small_splitmask_coco --data COCO --gpus 8 --dry-run
  python tools/reproduce.py coco --data COCO --rehearse
  python tools/reproduce.py finetuning --data ROOT --weights deit_small=deit.pth --weights dalle=dalle.safetensors"""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    listed = "\n".join(
        f"  {table.name:12}{table.title}\n  {'':12}rows: {', '.join(row.name for row in table.rows)}"
        for table in tables().values()
    )
    epilog = f"tables:\n  {STUDY:12}{STUDY_TITLE}\n{listed}\n\n{EPILOG}"
    parser = cli.Parser(prog="tools/reproduce.py", description=__doc__, epilog=epilog)
    parser.add_argument("table", metavar="TABLE[/ROW]", help="what to make, see the list below")
    data = "where the images are; may be repeated"
    parser.add_argument("--data", action="append", default=[], metavar="ROOT|NAME=PATH", help=data)
    parser.add_argument("--output", metavar="DIR", help="default runs/reproduce, of the study runs/study_SIZE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    seeds = "fine-tunings of each row on one pre-training (default 1); of the study: whole rows (default: the size's)"
    parser.add_argument("--seeds", type=cli.positive_int, metavar="N", help=seeds)
    workers = "data processes of each job (default: the tools' own, auto; of the study 0 on a CPU, else up to 8)"
    cli.add_device(parser)
    parser.add_argument("--workers", type=cli.non_negative_int, metavar="N", help=workers)
    jobs = "jobs at once (default 1; of the study the cores, on a GPU 3)"
    parser.add_argument("--jobs", type=cli.positive_int, metavar="N", help=jobs)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE", help="files that you have")
    cli.add_precision(parser, "of every training (default bf16; of the study's CPU size where the CPU computes in it)")
    table = parser.add_argument_group("tables of the paper")
    table.add_argument("--gpus", type=cli.positive_int, metavar="N", help="processes of torchrun (default 1)")
    tflops = "what one GPU reaches, as tools/benchmark.py measures it"
    rehearse = "make every step of the plan with a few optimizer steps: seconds, memory, what is missing, no result"
    table.add_argument("--rehearse", action="store_true", help=rehearse)
    batch = "images of a step in a rehearsal (default: the recipe's, accumulated until it fits; without a GPU 1 or 2)"
    table.add_argument("--rehearse-batch", type=cli.positive_int, metavar="N", help=batch)
    table.add_argument("--tflops", type=cli.positive_float, metavar="F", help=tflops)
    for tool in TOOLS:
        name = tool.replace("_", "-")
        table.add_argument(f"--{name}-options", default="", metavar='"..."', help=f"further options of tools/{tool}.py")
    study = parser.add_argument_group("the small study")
    sizes = "(default: gpu where there is one)"
    study.add_argument("--size", type=cli.choice("size", SIZES), metavar="|".join(SIZES), help=sizes)
    study.add_argument("--rows", metavar="A,B", help="some of the size's rows, or others; ablation: each value in turn")
    labels = "shares of the labels to fine-tune random init and SplitMask with (default 0.05,0.1,0.25,0.5,1)"
    study.add_argument("--labels", metavar="A,B", help=labels)
    study.add_argument("--sets", metavar="A,B", help="some of the data sets: nuclei, camvid (default both)")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(_joined(argv))
    cli.start_log()
    name, _, row = args.table.partition("/")
    if name != STUDY and name not in tables():
        raise UserError(f"unknown table '{name}': {nearest(name, [STUDY, *tables()])}")
    if not all(args.data) or not (args.data or args.dry_run):
        what = "is empty" if args.data else "ROOT is missing"
        raise UserError(f"--data {what}: name the folder that holds the data sets")
    extra = {tool: _split(tool, vars(args)[f"{tool}_options"]) for tool in TOOLS}
    if name != STUDY:
        return _table(args, extra, name, row)
    if len(args.data) > 1 or any(extra.values()):
        raise UserError(f"{STUDY} takes one --data ROOT and no --TOOL-options")
    return _study(args, row)


def _joined(argv: list[str]) -> list[str]:
    """Returns argv with the value of --TOOL-options joined to it: it may begin with a dash itself."""
    names = {f"--{tool.replace('_', '-')}-options" for tool in TOOLS}
    joined, rest = [], list(argv)
    while rest:
        text = rest.pop(0)
        joined.append(f"{text}={rest.pop(0)}" if text in names and rest else text)
    return joined


def _split(tool: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{tool.replace('_', '-')}-options {text}: {error}: check the quotation marks") from None


def _table(args: Any, extra: dict[str, list[str]], name: str, row: str) -> int:
    table = find_table(name)
    if args.rehearse_batch is not None and not args.rehearse:
        raise UserError("--rehearse-batch goes with --rehearse: add it, or omit both")
    if any(value is not None for value in (args.size, args.rows, args.sets, args.labels)):
        options = "--size, --rows, --sets and --labels"
        raise UserError(f"{options} go with {STUDY}: a row of a table is {name}/{table.rows[0].name}")
    from tools.reproduction.make import make_table, needed_sets
    from tools.reproduction.plan import Planner, parse_files
    from tools.reproduction.sets import Places

    rows = [table.row(row)] if row else list(table.rows)
    output = Path(args.output or "runs/reproduce")
    places, files = Places(args.data, needed_sets(rows)), parse_files(args.weights)
    planner = Planner(
        output, places, files, args.seeds or 1, args.precision or "bf16", args.workers, extra, args.device
    )
    gpus, batches = args.gpus or 1, {}
    if args.rehearse_batch is not None:
        batches = dict.fromkeys(TOOLS, args.rehearse_batch)
    elif args.rehearse and not _has_gpu():
        # Matching and batch norm need two images; a detector's are large.
        batches = {tool: gpus if tool == "train_det" else 2 * gpus for tool in TOOLS}
    return make_table(table, rows, planner, args.jobs or 1, gpus, args.tflops, args.dry_run, args.rehearse, batches)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _study(args: Any, row: str) -> int:
    given = [args.gpus, args.tflops, args.rehearse or None, args.rehearse_batch]
    if any(value is not None for value in given):
        names = "--gpus, --tflops and --rehearse"
        raise UserError(f"{names} go with the tables of the paper: {STUDY} has its own")
    if row and args.rows:
        raise UserError("--rows and a row after the slash exclude each other: give one of them")
    from tools.reproduction import study
    from tools.reproduction.make import make_study
    from tools.reproduction.plan import parse_files

    asked = _names(row or args.rows, "row of the study", (*study.ROWS, "ablation"), "" if row else "--rows")
    sets = _names(args.sets, "data set of the study", tuple(study.HEADS), "--sets") or tuple(study.HEADS)
    if "ablation" in asked:
        asked = ("random", "full", *study.ABLATION, *asked)
    size = args.size
    if size is None:
        size = "gpu" if _has_gpu() else "cpu"
    files = parse_files(args.weights, [name for name, row in study.ROWS.items() if row.given])
    lacking = {name for name, row in study.ROWS.items() if row.given and name not in files}
    for name in sorted(lacking.intersection(asked)):
        raise UserError(f"row {name} needs --weights {name}=FILE: {study.ROWS[name].title}, as timm or DeiT publish it")
    unused = sorted(set(files).difference(asked)) if asked else []
    if unused:
        raise UserError(f"--weights {unused[0]}={files[unused[0]]} is for the row {unused[0]}: add it to --rows")
    chosen = {data: asked or {*study.BUDGETS[size].rows[data], *files} - lacking for data in sets}
    rows = {data: tuple(name for name in study.ROWS if name in chosen[data]) for data in sets}
    cores = usable_cores()
    # Such a small model leaves most of a GPU idle: several jobs share it, as far as there are cores for their data.
    at_once = args.jobs or (cores if size == "cpu" else max(1, min(3, cores // 4)))
    # A process of its own for the data would take the core of the next job.
    workers = 0 if size == "cpu" else max(1, min(8, cores // at_once - 1))
    workers = workers if args.workers is None else args.workers
    output = Path(args.output or f"runs/study_{size}")
    seeds = args.seeds or study.BUDGETS[size].seeds
    shares = study.SHARES if args.labels is None else _shares(args.labels)
    root = Path(args.data[0] if args.data else "<data>")
    precision = args.precision or _study_precision(size)
    made = study.Study(size, root, output, rows, seeds, workers, shares, files, precision, args.device)
    return make_study(made, at_once, args.dry_run)


def _study_precision(size: str) -> str | None:
    """Returns bf16 for a CPU that computes in it, None where the size's own precisions are the choice."""
    if size != "cpu":
        return None
    from pretrain.training.distributed import cpu_has_bf16

    return "bf16" if cpu_has_bf16() else None


def _shares(text: str) -> tuple[float, ...]:
    """Returns shares of the labels, ascending, all of them among them."""
    try:
        # Folders are named by what a percentage shows.
        shares = {float(f"{float(part):g}") for part in text.split(",")} | {1.0}
    except ValueError:
        shares = {0.0}
    if not all(0 < share <= 1 for share in shares):
        raise UserError(f"--labels {text} must be shares above 0 and up to 1, such as 0.1,0.5,1")
    return tuple(sorted(shares))


def _names(text: str | None, what: str, choices: tuple[str, ...], option: str) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else ()
    for name in names:
        check_choice(what, name, choices, option)
    return names


if __name__ == "__main__":
    cli.run(main)
