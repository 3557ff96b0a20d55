"""Fine-tunes a pre-trained encoder on labelled images: writes results.json with top-1 accuracy into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
from importlib.util import find_spec
from pathlib import Path

from splitmask_backbones.errors import UserError
from tools import cli
from tools.classification.data import add_data_options
from tools.classification.recipes import RECIPES, ClsRecipe, get_recipe


def build_parser() -> cli.Parser:
    """Returns the parser: one option for every recipe value, defaults from the recipes."""
    recipes = "\n".join(
        f"  {name:20}{about}; {f'{r.epochs} epochs' if r.epochs else f'{r.steps} steps'}, batch {r.batch_size}, "
        f"lr {r.lr:.2g}, layer decay {r.layer_decay:g}"
        for name, (about, r) in RECIPES.items()
    )
    parser = cli.Parser(
        prog="tools/train_cls.py",
        description=__doc__,
        epilog=f"recipes:\n{recipes}\n\nDefaults shown are those of most recipes; a recipe's own values win.\n"
        "Several GPUs: torchrun --nproc-per-node=8 tools/train_cls.py ...",
    )
    parser.add_argument("--recipe", metavar="NAME", help="see the list below")
    add_data_options(parser, required=False)
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    cli.add_run_options(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest weights of the run in --output")
    parser.add_argument(
        "--predict",
        metavar="IMAGE|DIR",
        help="write the likeliest classes into DIR/predictions/ with the newest weights of --output; a new --output "
        "is trained first",
    )
    cli.add_values(parser, ClsRecipe)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args: argparse.Namespace = build_parser().parse_args(argv)
    given = cli.given_values(args, ClsRecipe)
    if args.recipe is not None:
        get_recipe(args.recipe).override(given)  # option errors come before anything heavy is imported or created
    has_run = (Path(args.output) / "config.json").exists()
    only_use = args.eval_only or (args.predict is not None and has_run and not args.resume)
    if args.eval_only and args.resume:
        raise UserError("--eval-only and --resume exclude each other: --resume evaluates at its end")
    if only_use and not has_run:
        raise UserError(f"--eval-only: {args.output} holds no run: train a classifier first, with --weights")
    if not only_use and args.recipe is None:
        raise UserError(f"--recipe NAME is needed for training: choose from {', '.join(RECIPES)}")
    if not only_use and args.weights is None:
        raise UserError("--weights FILE|none is needed for training: name an encoder.safetensors, or none")
    if args.data is None and (args.eval_only or not only_use):
        raise UserError("--data ROOT is needed: name the folder with the labelled images")
    if args.predict is not None and not Path(args.predict).exists():
        raise UserError(f"--predict {args.predict} does not exist: name an image or a folder of images")
    if find_spec("timm") is None:
        raise UserError("timm is not installed: pip install timm, or the project with its extra 'classification'")
    from tools.classification import run

    if only_use:
        run.use(args, given)
    else:
        run.train(args, get_recipe(args.recipe), given)
    return 0


if __name__ == "__main__":
    cli.run(main)
