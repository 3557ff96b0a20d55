"""Measures speed as ratios within one run, because shared machines change theirs."""

import _path  # noqa: F401

from pretrain.recipes import Recipe
from splitmask_backbones.errors import check_choice
from splitmask_backbones.registry import ENCODERS
from tools import cli

BENCHMARKS = {
    "pretrain": "FLOPs by part, images/s, and the share of the machine's matrix-product rate that a step reaches",
    "backbone": "forward and backward of the encoder against detectron2's own ViT: time and peak memory",
}


def build_parser() -> cli.Parser:
    """Returns the parser."""
    listed = "\n".join(f"  {name:12}{about}" for name, about in BENCHMARKS.items())
    parser = cli.Parser(prog="tools/benchmark.py", description=__doc__, epilog=f"benchmarks:\n{listed}")
    parser.add_argument("what", metavar="|".join(BENCHMARKS), help="see below")
    parser.add_argument("--model", default="vit_small", metavar="M", help=f"one of {', '.join(ENCODERS)}")
    text = "pixels (default 224; backbone: 512, ViTDet's is 1024)"
    parser.add_argument("--img-size", type=cli.positive_int, metavar="P", help=text)
    parser.add_argument("--batch-size", type=cli.positive_int, metavar="N", help="images (default 32; backbone: 1)")
    parser.add_argument("--steps", type=cli.positive_int, default=5, metavar="N", help="measured steps (default 5)")
    cli.add_device(parser)
    parser.add_argument("--precision", default="32", metavar="32|bf16", help="default 32")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    check_choice("benchmark", args.what, BENCHMARKS)
    check_choice("model", args.model, ENCODERS)
    check_choice("precision", args.precision, ("32", "bf16"))
    if args.what == "pretrain":
        from tools.benchmarks.pretrain import pretrain_step

        values = {name: getattr(args, name) for name in ("model", "img_size", "batch_size", "precision", "steps")}
        given = {name: value for name, value in values.items() if value is not None}
        pretrain_step(Recipe().override({"batch_size": 32, **given}), args.steps, args.device)
    else:
        from tools.benchmarks.backbone import compare_backbones

        size, batch_size = args.img_size or 512, args.batch_size or 1
        compare_backbones(args.model, size, batch_size, args.steps, args.precision, args.device)
    return 0


if __name__ == "__main__":
    cli.run(main)
