"""Fine-tunes a pre-trained encoder on labelled images: writes results.json with top-1 accuracy into --output."""

import _path  # noqa: F401
from importlib.util import find_spec

from splitmask_backbones.errors import UserError
from tools import cli
from tools.classification.data import DataOptions, add_data_options
from tools.classification.recipes import RECIPES, ClsRecipe, get_recipe
from tools.finetuning.options import add_options, finetune_options


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
    add_options(parser, "write the likeliest classes")
    cli.add_values(parser, ClsRecipe)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    given = cli.given_values(args, ClsRecipe)
    base = ClsRecipe() if args.recipe is None else get_recipe(args.recipe)
    base.override(given)  # option errors come before anything heavy is imported or created
    options = finetune_options(vars(args), "classifier")
    if options.trains:
        base = get_recipe(args.recipe)
    if args.data is None and (options.eval_only or options.trains):
        raise UserError("--data ROOT is needed: name the folder with the labelled images")
    if find_spec("timm") is None:
        raise UserError("timm is not installed: pip install timm, or the project with its extra 'classification'")
    from tools.classification.task import ClassificationTask
    from tools.finetuning.run import run

    run(ClassificationTask(options, args.recipe, base, given, DataOptions.of(vars(args))))
    return 0


if __name__ == "__main__":
    cli.run(main)
