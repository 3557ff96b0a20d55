"""Fine-tunes UperNet (MMSegmentation) on the encoder: writes results.json with mIoU into --output."""

import _path  # noqa: F401
import argparse
from dataclasses import replace
from pathlib import Path

from splitmask_backbones.errors import UserError
from tools import cli
from tools.finetuning.options import add_options, finetune_options
from tools.segmentation.config import config_path
from tools.segmentation.layout import check_root

VALUES = {
    "steps": (cli.positive_int, "N", "steps of the whole run"),
    "batch_size": (cli.positive_int, "N", "images per step over all processes and micro-batches"),
    "img_size": (cli.positive_int, "N", "pixels of the square crop"),
    "seed": (cli.non_negative_int, "N", "seed of everything random"),
    "labels": (cli.positive_float, "F", "share of the training images that is used, drawn by seed"),
    "lr": (cli.positive_float, "F", "peak learning rate of the last layer; the config's is scaled with --batch-size"),
}
GIVEN = (*VALUES, "overrides", "save_every", "log_every", "precision", "tta")
EXAMPLES = """examples:
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --weights encoder.safetensors --output DIR
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --output DIR --eval-only
  python tools/train_seg.py seg_configs/camvid_tiny.py --output DIR --predict PICTURES

--data ROOT holds images/{train*,val*} and annotations/{train*,val*}; labels are one class index a pixel, 255 = ignore
(ADE20K's own folder names: 0 = ignore, and its 150 classes). --eval-only and --predict use the finished segmentor in
--output, else the newest checkpoint (--best: the best one); --predict with --weights on a new --output trains first.
Several GPUs: torchrun --nproc-per-node=8 tools/train_seg.py ...; --batch-size counts the images of all of them."""


def build_parser() -> cli.Parser:
    """Returns the parser; values omitted come from the config."""
    parser = cli.Parser(prog="tools/train_seg.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="a file like seg_configs/camvid_tiny.py, or its name")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values, dotted: optim_wrapper.optimizer.lr=1e-4"
    )
    parser.add_argument("--data", metavar="ROOT", help="folder with images/ and annotations/")
    parser.add_argument("--classes", metavar="FILE.json", help='names, or {"classes", "palette", "reduce_zero_label"}')
    cli.add_bad_fraction(parser)
    add_options(parser, "draw overlays", intervals=False)
    parser.add_argument(
        "--tta", action="store_true", help="evaluate and predict at several scales, each flipped too (the config's tta)"
    )
    about = "config values as options (they win over config and key=value; the config's where they are omitted)"
    recipe = parser.add_argument_group(about)
    for name, (kind, metavar, text) in VALUES.items():
        recipe.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    cli.add_precision(recipe)
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Returns the options; `key=value` pairs may stand anywhere."""
    parser = build_parser()
    argv, pairs = cli.take_overrides(parser, argv)
    args = parser.parse_args(argv)
    args.overrides += pairs
    return args


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = parse_args(argv)
    path = config_path(args.config)
    given = {name: getattr(args, name) for name in GIVEN}
    options = finetune_options(vars(args), "segmentor")
    if args.data is None and (options.trains or options.eval_only):
        raise UserError("--data ROOT is missing: name the folder with images/ and annotations/")
    if args.data is not None and not Path(args.data).exists():
        check_root(Path(args.data))
    from tools.segmentation.recipe import SegRecipe

    base = SegRecipe.load(path)
    if options.trains:
        config = base.override(given).config
        options = replace(options, save_every=config["save_every"], log_every=config["log_every"])
    from tools.segmentation.model import quiet_warnings  # mmseg, torch

    quiet_warnings()
    from tools.finetuning.run import run
    from tools.segmentation.task import SegmentationTask

    root = None if args.data is None else Path(args.data)
    run(SegmentationTask(options, path.stem, base, given, root, args.classes))
    return 0


if __name__ == "__main__":
    cli.run(main)
