"""Measures speed as ratios within one run, because shared machines change theirs."""

import _path  # noqa: F401

from pretrain.own_recipe import OWN
from pretrain.recipes import RECIPES, Recipe, get_recipe
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from tools import cli

BENCHMARKS = {
    "pretrain": "FLOPs by part; step (share of the matrix-product rate, memory), loader, both together, starts",
    "backbone": "forward and backward of the encoder against detectron2's own ViT: time and peak memory",
}


def build_parser() -> cli.Parser:
    """Returns the parser."""
    listed = "\n".join(f"  {name:12}{about}" for name, about in BENCHMARKS.items())
    parser = cli.Parser(prog="tools/benchmark.py", description=__doc__, epilog=f"benchmarks:\n{listed}")
    parser.add_argument(
        "what", type=cli.choice("benchmark", BENCHMARKS), metavar="|".join(BENCHMARKS), help="see below"
    )
    text = f"one of {', '.join(ENCODERS)} (default vit_small, or the recipe's)"
    parser.add_argument("--model", type=cli.choice("model", ENCODERS), metavar="M", help=text)
    text = "pixels (default 224, or the recipe's; backbone: 512, ViTDet's is 1024)"
    parser.add_argument("--img-size", type=cli.positive_int, metavar="P", help=text)
    parser.add_argument(
        "--batch-size", type=cli.positive_int, metavar="N", help="images (default 32, or the recipe's; backbone: 1)"
    )
    parser.add_argument("--steps", type=cli.positive_int, default=5, metavar="N", help="measured steps (default 5)")
    cli.add_device(parser)
    cli.add_precision(parser)
    group = parser.add_argument_group("pretrain alone")
    one_of = cli.choice("recipe", RECIPES)
    group.add_argument("--recipe", type=one_of, metavar="NAME", help="of tools/pretrain.py, such as coco or small")
    cli.add_workers(group)
    group.add_argument("--data", metavar="PATH", help="images for the loader (default: synthetic ones of COCO's size)")
    text = "images that are read, at least a batch (default 64)"
    group.add_argument("--images", type=cli.positive_int, default=64, metavar="N", help=text)
    text = "tiny files to measure starts with (default 0: not measured; 20000 take a minute)"
    group.add_argument("--start-images", type=cli.non_negative_int, default=0, metavar="N", help=text)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.recipe == OWN:
        remedy = f"tools/pretrain.py --recipe {OWN} --plan measures them"
        raise UserError(f"--recipe {OWN} derives its values from images: {remedy}")
    if args.what == "pretrain":
        values = {name: getattr(args, name) for name in ("model", "img_size", "batch_size", "precision")}
        given = {name: value for name, value in values.items() if value is not None}
        small = {} if args.recipe else {"batch_size": 32}
        recipe = (get_recipe(args.recipe) if args.recipe else Recipe()).override({**small, **given})
        from tools.benchmarks.pretrain import benchmark_pretraining

        benchmark_pretraining(recipe, args.steps, args.device, args.workers, args.data, args.images, args.start_images)
    else:
        from tools.benchmarks.backbone import compare_backbones

        size, batch_size = args.img_size or 512, args.batch_size or 1
        compare_backbones(args.model or "vit_small", size, batch_size, args.steps, args.precision or "32", args.device)
    return 0


if __name__ == "__main__":
    cli.run(main)
