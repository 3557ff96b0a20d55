"""Fine-tunes Mask R-CNN on a pre-trained encoder with COCO-format data: writes results.json into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
from pathlib import Path

from det_configs.common.recipe import FIELDS
from splitmask_backbones.errors import UserError
from tools import cli
from tools.detection.config import config_names, given_values, load_config, take_overrides
from tools.detection.engines import ENGINES, choose_engine


def build_parser() -> cli.Parser:
    """Returns the parser; recipe values are `key=value` words, the common ones are options too."""
    values = "\n".join(
        f"  {name:24}{field.metadata['help']} (default {field.default})" for name, field in FIELDS.items()
    )
    parser = cli.Parser(
        prog="tools/train_det.py",
        usage="tools/train_det.py CONFIG --data ROOT --weights FILE|none --output DIR [options] [key=value ...]",
        description=__doc__,
        epilog=f"configs: {', '.join(config_names())}\n\nrecipe values for key=value (a config's own value "
        f"wins over the default):\n{values}",
    )
    parser.add_argument("config", metavar="CONFIG", help="a file of det_configs/, or your own")
    data = parser.add_argument_group("data (COCO format)")
    data.add_argument(
        "--data",
        metavar="ROOT",
        help="folder with train*/, val*/ and annotations/instances_*.json, or TRAIN.json+DIR with --val",
    )
    data.add_argument("--val", metavar="VAL.json+DIR", help="validation data, wins over ROOT's")
    for split in ("train", "val"):
        data.add_argument(f"--{split}-json", metavar="FILE", help=f"{split} annotations, with --{split}-images")
        data.add_argument(f"--{split}-images", metavar="DIR", help=f"folder of the {split} images")
    data.add_argument(
        "--max-bad-fraction",
        type=cli.fraction,
        default=0.01,
        metavar="F",
        help="largest share of images that are missing or unreadable (default 0.01)",
    )
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="|".join(ENGINES),
        help="(default auto: detectron2 if installed)",
    )
    cli.add_run_options(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest weights of the run in --output")
    parser.add_argument(
        "--predict",
        metavar="IMAGE|DIR",
        help="draw boxes and masks into DIR/predictions/ with the newest weights of --output; a new --output is "
        "trained first",
    )
    recipe = parser.add_argument_group("recipe values as options (they win over config and key=value)")
    for name, kind in (
        ("steps", cli.positive_int),
        ("epochs", cli.positive_int),
        ("batch-size", cli.positive_int),
        ("img-size", cli.positive_int),
        ("lr", cli.positive_float),
        ("seed", cli.non_negative_int),
    ):
        help = FIELDS[name.replace("-", "_")].metadata["help"]
        recipe.add_argument(f"--{name}", type=kind, metavar=name.upper().split("-")[-1], help=help)
    recipe.add_argument("--precision", metavar="32|bf16", help=FIELDS["precision"].metadata["help"])
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    parser = build_parser()
    words, overrides = take_overrides(parser, argv)
    args: argparse.Namespace = parser.parse_args(words)
    base = load_config(args.config)
    given = given_values(args, overrides)
    # Option errors come before anything heavy is imported or created.
    choose_engine(args.engine, base.override(given))
    has_run = (Path(args.output) / "config.json").exists()
    only_use = args.eval_only or (args.predict is not None and has_run and not args.resume)
    if only_use and not has_run:
        raise UserError(f"--eval-only: {args.output} holds no run: train a detector first, with --weights")
    if not only_use and args.weights is None:
        raise UserError("--weights FILE|none is needed for training: name an encoder.safetensors, or none")
    if args.predict is not None and not Path(args.predict).exists():
        raise UserError(f"--predict {args.predict} does not exist: name an image or a folder of images")

    from tools.detection import run

    if only_use:
        run.use(args, given)
    else:
        run.train(args, base, given)
    return 0


if __name__ == "__main__":
    cli.run(main)
