"""Pre-trains a recipe's encoder with lightly-train's DINO on the same images and as many of them, for comparison.

Writes DIR/encoder.safetensors, which --weights of the other tools takes. Encoder, side of the crops, images of a step,
steps, precision and seed are the recipe's; all else is what lightly-train does by itself. It needs lightly-train (0.18
was tried), which is no dependency of this project: its licence is the AGPL 3.0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # a script: its folder has a pretrain.py too; as tools/_path.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    del sys.path[1]

from pretrain.own_recipe import OWN
from pretrain.recipes import Recipe, get_recipe
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import ENCODER
from tools import cli

NAMED = ("model", "embed_dim", "depth", "img_size", "local_crops", "epochs", "steps", "batch_size", "precision", "seed")
"""The values of a recipe that decide here."""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/benchmarks/lightly_dino.py", description=__doc__)
    parser.add_argument("--recipe", required=True, metavar="NAME", help="of tools/pretrain.py")
    parser.add_argument("--data", required=True, metavar="PATH", help="image folder, or what tools/pretrain.py takes")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for all that is written")
    cli.add_workers(parser)
    cli.add_values(parser, Recipe, NAMED)
    return parser


def main(argv: list[str]) -> int:
    """Runs the script; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.recipe == OWN:
        raise UserError(f"--recipe {OWN} derives its values in tools/pretrain.py: name another, such as small")
    recipe = get_recipe(args.recipe).override({**cli.given_values(args, Recipe), "method": "dino"})
    encoder, work = Path(args.output) / ENCODER, Path(args.output) / "lightly"
    if encoder.exists():
        raise UserError(f"{encoder} exists already: name another --output")
    files = readable_files(args.data)
    try:
        import lightly_train
    except ImportError as error:
        raise UserError(f"this comparison needs lightly-train ({error}): pip install lightly-train") from None
    cli.start_log()
    from splitmask_backbones.convert import convert

    start = time.perf_counter()
    called = arguments(recipe, len(files))
    lightly_train.pretrain(out=str(work), data=files, num_workers=args.workers, overwrite=True, **called)
    seconds = time.perf_counter() - start
    heads = {"num_heads": recipe.encoder_sizes["num_heads"]}
    convert(work / "exported_models" / "exported_last.pt", encoder, from_="timm", overrides=heads)
    print(f"{seconds:.0f} s; wrote {encoder}")
    return 0


def readable_files(data: str) -> list[str]:
    """Returns the images of `--data`, checked before lightly-train is imported: it lets pillow read truncated ones.

    Raises:
        ValueError: one cannot be read.
    """
    from pretrain.data.decode import UnreadableImage
    from pretrain.data.sources import open_source

    images = open_source(data)
    files = [images.path(name) for name in images.names]
    for index, file in enumerate(files):
        try:
            images.check(index)
        except UnreadableImage as error:
            raise UserError(f"{file}: {error}: repair or remove it") from None
    return [str(file) for file in files]


def arguments(recipe: Recipe, num_images: int) -> dict[str, Any]:
    """Returns what lightly-train is called with, but for images and places."""
    import timm

    from pretrain.data.multicrop import local_size
    from pretrain.training.distributed import FABRIC_PRECISIONS
    from pretrain.training.loader import steps_per_epoch

    sizes, side = recipe.encoder_sizes, recipe.img_size
    per_epoch = steps_per_epoch(num_images, recipe.batch_size)
    steps = recipe.total_steps(per_epoch)
    small = local_size(side, sizes["patch_size"])
    return {
        # All sizes are given: the name stands for any plain ViT of timm. Small crops need dynamic_img_size.
        "model": timm.create_model(
            "vit_tiny_patch16_224", img_size=side, num_classes=0, dynamic_img_size=True, **sizes
        ),
        "method": "dino",
        "epochs": -(-steps // per_epoch),
        "batch_size": recipe.batch_size,
        "precision": FABRIC_PRECISIONS[recipe.precision],
        "seed": recipe.seed,
        "devices": 1,
        "transform_args": {
            "image_size": (side, side),
            "local_view": {"num_views": recipe.local_crops, "view_size": (small, small)},
        },
        "trainer_args": {"max_steps": steps},
    }


if __name__ == "__main__":
    cli.run(main)
