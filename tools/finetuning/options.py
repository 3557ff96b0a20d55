"""The options that the fine-tuning tools share, and what they say together. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.training.options import RunOptions
from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_path, check_weights
from splitmask_backbones.run_files import CONFIG
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
        predicts: what `--predict` does, "draw boxes" for one.
        intervals: whether `--save-every` and `--log-every` have defaults here; otherwise a config has them.
    """
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    cli.add_output(parser)
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


def finetune_options(given: Mapping[str, Any], noun: str) -> FinetuneOptions:
    """Returns the options of a command line.

    Args:
        given: parsed, by name, with what `add_options` adds; intervals that a config has may still be None.
        noun: what the tool trains, "detector" for one.

    Raises:
        ValueError: options that exclude each other, or one that is missing.
    """
    output, predict, resume, weights = Path(given["output"]), given["predict"], given["resume"], given["weights"]
    has_run = (output / CONFIG).exists()
    trains = resume or not (given["eval_only"] or (predict is not None and has_run))
    if given["eval_only"] and resume:
        raise UserError("--eval-only and --resume exclude each other: --resume evaluates at its end")
    if given["rehearse"] and (given["eval_only"] or not trains):
        raise UserError("--rehearse goes with a training: omit --eval-only and --predict")
    if given["best"] and trains:
        raise UserError("--best goes with --eval-only or --predict of a run: it names the weights to use")
    if not trains and not has_run:
        raise UserError(f"--eval-only: {output} holds no run: train a {noun} first, with --weights")
    if trains and weights is None:
        raise UserError("--weights FILE|none is needed for training: name an encoder.safetensors, or none")
    if trains and not resume and weights not in (None, "none"):
        check_weights(weights)
    if predict is not None:
        check_path(predict, "--predict")
    return FinetuneOptions.of(
        given,
        output=cli.rehearsal_output(output, given["rehearse"], resume),
        save_every=given["save_every"] or 0,
        log_every=given["log_every"] or 0,
        weights=None if weights in (None, "none") else Path(weights),
        predict=None if predict is None else Path(predict),
        trains=trains,
    )
