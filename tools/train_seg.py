"""Fine-tunes UperNet (MMSegmentation) on the encoder: writes results.json with mIoU into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import os
from pathlib import Path

from splitmask_backbones.errors import UserError, check_choice
from tools import cli
from tools.segmentation.config import config_path
from tools.segmentation.settings import read_record, run_config

TYPES = {
    "steps": cli.positive_int,
    "batch_size": cli.positive_int,
    "img_size": cli.positive_int,
    "seed": cli.non_negative_int,
}
EXAMPLES = """examples:
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --weights encoder.safetensors --output DIR
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --output DIR --eval-only
  python tools/train_seg.py seg_configs/camvid_tiny.py --output DIR --predict PICTURES

--data ROOT holds images/{train*,val*} and annotations/{train*,val*}; labels are one class index a pixel, 255 = ignore
(ADE20K's own folder names: 0 = ignore, and its 150 classes). --eval-only and --predict use the newest checkpoint in
--output (--best: the best one); --predict with --weights on a new --output trains first.
Several GPUs: torchrun --nproc-per-node=8 tools/train_seg.py ...; --batch-size counts the images of all of them."""


def build_parser() -> cli.Parser:
    """Returns the parser; values left out come from the config."""
    parser = cli.Parser(prog="tools/train_seg.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="a file like seg_configs/camvid_tiny.py, or its name")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values, dotted: optim_wrapper.optimizer.lr=1e-4"
    )
    parser.add_argument("--data", metavar="ROOT", help="folder with images/ and annotations/")
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    for name, kind in TYPES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="default: the config's")
    parser.add_argument(
        "--lr",
        type=cli.positive_float,
        metavar="F",
        help="peak lr of the last layer; default: the config's, scaled with --batch-size",
    )
    parser.add_argument("--save-every", type=cli.positive_int, metavar="STEPS", help="default: the config's")
    parser.add_argument("--log-every", type=cli.positive_int, metavar="STEPS", help="default: the config's")
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=2, metavar="N", help="data processes (default 2)"
    )
    parser.add_argument("--precision", metavar="32|bf16", help="default 32")
    parser.add_argument(
        "--max-bad-fraction",
        type=cli.fraction,
        default=0.01,
        metavar="F",
        help="largest share of unreadable images (default 0.01)",
    )
    parser.add_argument("--classes", metavar="FILE.json", help='names, or {"classes", "palette", "reduce_zero_label"}')
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest checkpoint in --output")
    parser.add_argument(
        "--tta", action="store_true", help="evaluate and predict at several scales, each flipped too (the config's tta)"
    )
    parser.add_argument(
        "--best", action="store_true", help="--eval-only and --predict use the best evaluated weights (eval_every=N)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--predict", metavar="IMAGE|DIR", help="draw overlays into --output/predictions")
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Returns the options; `key=value` words may stand anywhere, which argparse alone does not allow."""
    parser = build_parser()
    with_value = {name for action in parser._actions if action.nargs != 0 for name in action.option_strings}
    pairs = [
        i
        for i, word in enumerate(argv)
        if "=" in word and not word.startswith("-") and (i == 0 or argv[i - 1] not in with_value)
    ]
    args = parser.parse_args([word for i, word in enumerate(argv) if i not in pairs])
    args.overrides += [argv[i] for i in pairs]
    return args


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = parse_args(argv)
    if args.precision is not None:
        check_choice("precision", args.precision, ["32", "bf16"])
    path = config_path(args.config)
    output = Path(args.output)
    trained = (output / "config.json").exists() and any((output / "checkpoints").glob("step_????????.pth"))
    train = args.resume or not (args.eval_only or (args.predict and trained))
    _check_options(args, train, trained)
    record = read_record(output) if args.resume or not train else {}
    config = run_config(path, args, record, use_recorded=not train)
    from tools.segmentation.runner import quiet_warnings  # mmseg, torch

    quiet_warnings()
    from pretrain.training.run_folder import RunFolder
    from pretrain.training.signals import StopSignals
    from tools.segmentation import run
    from tools.segmentation.predict import find_pictures

    pictures = find_pictures(Path(args.predict)) if args.predict else []
    with (
        StopSignals() as stop,
        RunFolder.open(output, resume=args.resume or not train, artefact=run.ARTEFACT) as folder,
    ):
        if train:
            run.train(config, folder, args, stop)
        if not train or pictures:
            if train:
                record = read_record(output)
            run.use_checkpoint(config, record, folder, args, pictures)
    return 0


def _check_options(args: argparse.Namespace, train: bool, trained: bool) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (args.predict or not train):
        raise UserError(
            f"{'--predict' if args.predict else '--eval-only'} runs in one process: start it without torchrun"
        )
    if args.eval_only and args.resume:
        raise UserError("--eval-only and --resume exclude each other: --resume evaluates at its end")
    if args.best and train:
        raise UserError("--best goes with --eval-only or --predict of a run: it names the weights to use")
    if args.best and not (Path(args.output) / "best.pth").exists():
        raise UserError(f"--output {args.output} holds no best.pth: train with eval_every=N, or leave --best away")
    if not train and not trained:
        raise UserError(f"--output {args.output} holds no checkpoint of a run: train first, without --eval-only")
    if args.data is None and (train or args.eval_only):
        raise UserError("--data ROOT is missing: name the folder with images/ and annotations/")
    if args.weights is None and train:
        raise UserError("--weights is missing: name an encoder.safetensors, or none for random initialisation")


if __name__ == "__main__":
    cli.run(main)
