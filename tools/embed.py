"""Describes each image by one vector of an encoder, for search, clusters and duplicates: writes embeddings.npy."""

import _path  # noqa: F401
import argparse
from pathlib import Path

from pretrain.training.processes import processes
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import ENCODER
from tools import cli
from tools.frozen import POOLS

EPILOG = """Writes into --output: embeddings.npy, float32 (N, C); images.txt, the image of each row; neighbours.jpg, a
few images with those that are nearest to them; config.json; bad_images.txt where images cannot be read. The vector is
the mean of the patch tokens, or the class token, after the final norm, of the central square of an image. Which images
--data stands for is as in tools/pretrain.py. --resume goes on where a run was stopped.

example:
  python tools/embed.py --data MY_IMAGES --weights runs/mine/encoder.safetensors --output runs/embedded"""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/embed.py", description=__doc__, epilog=EPILOG)
    data = "image folder, text list, COCO json, or ADE20K root"
    parser.add_argument("--data", required=True, metavar="PATH", help=data)
    parser.add_argument("--images", metavar="ROOT", help="image folder of a COCO json")
    cli.add_selection(parser)
    parser.add_argument("--weights", required=True, metavar="FILE", help=ENCODER)
    cli.add_output(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    size = "side of the crop in pixels (default: that of the weights)"
    parser.add_argument("--img-size", type=cli.positive_int, metavar="P", help=size)
    crop = "side of the crop over the resized short side (default 1: all of it)"
    parser.add_argument("--test-crop", type=_share, default=1.0, metavar="F", help=crop)
    pool = "the mean of the patch tokens, or the class token (default mean)"
    parser.add_argument("--pool", type=cli.choice("pool", POOLS), default="mean", metavar="|".join(POOLS), help=pool)
    cli.add_precision(parser, "bf16 is mixed precision (default 32)", default="32")
    cli.add_device(parser)
    cli.add_workers(parser)
    cli.add_bad_fraction(parser)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    if processes().world_size > 1:
        raise UserError("tools/embed.py runs in one process: start it without torchrun")
    from tools.embedding.run import EmbedOptions, embed

    given = {name: value for name, value in vars(args).items() if name in EmbedOptions.__dataclass_fields__}
    embed(EmbedOptions(**{**given, "output": Path(args.output), "weights": Path(args.weights)}))
    return 0


def _share(text: str) -> float:
    share: float = cli.fraction(text)
    if share < 0.01:
        raise argparse.ArgumentTypeError(f"must be between 0.01 and 1, got {text}")
    return share


if __name__ == "__main__":
    cli.run(main)
