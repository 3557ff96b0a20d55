"""The options that the fine-tuning tools share, and what they say together. Free of torch."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from pretrain.training.options import RunOptions
from pretrain.training.run_folder import CONFIG
from splitmask_backbones.errors import UserError
from tools import cli


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """What a fine-tuning tool is to do.

    Attributes:
        weights: encoder file to start from; None for random initialisation.
        eval_only: evaluate the run in `output`.
        predict: picture, or folder of pictures, to predict; None for none.
        best: use the best evaluated weights and not the newest.
        trains: whether there is anything to train; otherwise the run in `output` is used.
    """

    weights: Path | None
    eval_only: bool
    predict: Path | None
    best: bool
    trains: bool


def add_options(parser: cli.Parser, predicts: str, intervals: bool = True) -> None:
    """Adds them.

    Args:
        parser: of the tool.
        predicts: what `--predict` does, "draw boxes" for one.
        intervals: whether `--save-every` and `--log-every` have defaults here; otherwise a config has them.
    """
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    cli.add_run_options(parser, intervals)
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest weights of the run in --output")
    parser.add_argument(
        "--best",
        action="store_true",
        help="--eval-only and --predict use the best evaluated weights (eval_every=N keeps them)",
    )
    parser.add_argument(
        "--predict",
        metavar="IMAGE|DIR",
        help=f"{predicts} into DIR/predictions/ with the newest weights of --output; a new --output is trained first",
    )


def finetune_options(args: argparse.Namespace, noun: str, save_every: int, log_every: int) -> FinetuneOptions:
    """Returns the options of a command line.

    Args:
        args: with what `add_options` adds.
        noun: what the tool trains, "detector" for one.
        save_every, log_every: in steps, resolved.

    Raises:
        ValueError: options that exclude each other, or one that is missing.
    """
    output = Path(args.output)
    has_run = (output / CONFIG).exists()
    trains = args.resume or not (args.eval_only or (args.predict is not None and has_run))
    if args.eval_only and args.resume:
        raise UserError("--eval-only and --resume exclude each other: --resume evaluates at its end")
    if args.best and trains:
        raise UserError("--best goes with --eval-only or --predict of a run: it names the weights to use")
    if not trains and not has_run:
        raise UserError(f"--eval-only: {output} holds no run: train a {noun} first, with --weights")
    if trains and args.weights is None:
        raise UserError("--weights FILE|none is needed for training: name an encoder.safetensors, or none")
    if args.predict is not None and not Path(args.predict).exists():
        raise UserError(f"--predict {args.predict} does not exist: name an image or a folder of images")
    return FinetuneOptions(
        output=output,
        resume=args.resume,
        workers=args.workers,
        save_every=save_every,
        log_every=log_every,
        max_bad_fraction=args.max_bad_fraction,
        weights=None if args.weights in (None, "none") else Path(args.weights),
        eval_only=args.eval_only,
        predict=None if args.predict is None else Path(args.predict),
        best=args.best,
        trains=trains,
    )
