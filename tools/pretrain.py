"""Pre-trains a plain ViT with SplitMask (BEiT, DINO) on your own images: writes encoder.safetensors into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import dataclasses
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from pretrain.recipes import RECIPES, Recipe, get_recipe
from splitmask_backbones.errors import UserError
from tools import cli, monitoring

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pretrain.data.sources import ImageList
    from pretrain.training.run_folder import RunFolder

ARTEFACT = "encoder.safetensors"
KEPT = ("tokenizer_weights", *monitoring.OPTIONS)
"""Options beside the recipe's that a resume keeps where they are left away."""


def build_parser() -> cli.Parser:
    """Returns the parser: one option for every recipe value, defaults from the recipes."""
    recipes = "\n".join(
        f"  {name:20}{about}; {r.model}, {f'{r.epochs} epochs' if r.epochs else f'{r.steps} steps'}, "
        f"batch {r.batch_size}, lr {r.peak_lr:.2g}"
        for name, (about, r) in RECIPES.items()
    )
    parser = cli.Parser(
        prog="tools/pretrain.py",
        description=__doc__,
        epilog=f"recipes:\n{recipes}\n\nDefaults shown are those of most recipes; a recipe's own values win.\n"
        "Several GPUs: torchrun --nproc-per-node=8 tools/pretrain.py ...",
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help="see the list below")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="image folder, text list, COCO json, or ADE20K root"
    )
    parser.add_argument("--images", metavar="ROOT", help="image folder of a COCO json")
    parser.add_argument("--tokenizer-weights", metavar="FILE", help="safetensors of DALL-E's encoder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    cli.add_run_options(parser)
    parser.add_argument(
        "--max-bad-fraction",
        type=cli.fraction,
        default=0.01,
        metavar="F",
        help="largest share of unreadable images (default 0.01)",
    )
    monitoring.add_options(parser)
    cli.add_values(parser, Recipe)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    named = get_recipe(args.recipe)
    given = cli.given_values(args, Recipe)
    recipe = named.override(given)  # option errors come before anything is imported or created
    if not args.resume:
        recipe.check_tokenizer_weights(args.tokenizer_weights)
        monitoring.check_options(args)
    from pretrain.data.sources import open_source
    from pretrain.training.run_folder import RunFolder
    from pretrain.training.signals import StopSignals

    source = open_source(args.data, args.images)
    with StopSignals(), RunFolder.open(args.output, resume=args.resume, artefact=ARTEFACT) as folder:
        from pretrain.training.distributed import make_fabric

        cli.start_log()
        recipe = _recipe_of(args.recipe, named, given, folder.previous)
        before = (folder.previous or {}).get("free", {})
        monitoring.check_options(args, before.get("monitor_every"))
        for name in KEPT:
            if getattr(args, name) is None:
                setattr(args, name, before.get(name))
        recipe.check_tokenizer_weights(args.tokenizer_weights)
        fabric = make_fabric(recipe.precision)
        images, data = _readable_images(source, folder, args, fabric)
        folder.write_config(_config(args, recipe, data))
        if folder.finished:
            print(f"{folder.path / ARTEFACT} is finished: nothing to do")
            return 0
        _train(recipe, images, folder, args, fabric)
    return 0


def _recipe_of(name: str, named: Recipe, given: dict[str, Any], previous: dict[str, Any] | None) -> Recipe:
    """Returns the recipe with the options given; on a resume, options left away keep the values of the run."""
    if previous is None:
        return named.override(given)
    if previous.get("recipe") != name:
        raise UserError(
            f"--resume: the run in --output has --recipe {previous.get('recipe')} and not {name}: "
            "name the old recipe, or start anew in another --output"
        )
    old = Recipe(**previous["values"])
    if "epochs" in given and old.steps is not None or "steps" in given and old.epochs is not None:
        return named.override(given)
    return old.override(given)


def _readable_images(
    source: ImageList, folder: RunFolder, args: argparse.Namespace, fabric: Fabric
) -> tuple[ImageList, dict[str, Any]]:
    """Returns the images that decode to the end, and what identifies the data; a resume trusts an unchanged list."""
    from pretrain.data.check import check_images, enforce_bad_limit

    data: dict[str, Any] = {"num_files": len(source), "fingerprint": source.fingerprint()}
    before = (folder.previous or {}).get("data", {})
    if before:  # other data is told apart by write_config, before an image is read
        bad = set(before["unreadable"])
        data["unreadable"] = before["unreadable"]
        return source.subset([name for name in source.names if name not in bad]), data
    bad = set()
    if fabric.is_global_zero:
        print(f"{source.describe()}: checking {len(source)} images")
        found = check_images(source.root, source.names, workers=args.workers)
        report = folder.path / "bad_images.txt"
        enforce_bad_limit(len(source), found, args.max_bad_fraction, report, root=source.root)
        bad = {image.name for image in found}
    bad = fabric.broadcast(bad)
    data["unreadable"] = sorted(bad)
    return source.subset([name for name in source.names if name not in bad]), data


def _config(args: argparse.Namespace, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    import torch

    from pretrain.methods.build import build_encoder
    from splitmask_backbones.files import sha256_of

    return {
        "command": "pretrain",
        "recipe": args.recipe,
        "values": dataclasses.asdict(recipe),
        "encoder": build_encoder(recipe).config,
        "data": data,
        **({"--tokenizer-weights": sha256_of(args.tokenizer_weights)} if args.tokenizer_weights else {}),
        **({"--holdout": args.holdout} if args.holdout else {}),
        "free": {
            "data": str(args.data),
            "workers": args.workers,
            "save_every": args.save_every,
            "log_every": args.log_every,
            "max_bad_fraction": args.max_bad_fraction,
            **{name: getattr(args, name) for name in KEPT},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        },
    }


def _train(recipe: Recipe, images: ImageList, folder: RunFolder, args: argparse.Namespace, fabric: Fabric) -> None:
    import torch

    from pretrain.methods.build import build_method, build_views
    from pretrain.tokenizers.build import TOKENIZER_FILE
    from pretrain.training.loader import step_batches, steps_per_epoch
    from pretrain.training.loop import Loop, fit
    from pretrain.training.schedule import cosine, warmup_cosine
    from splitmask_backbones import save_encoder
    from splitmask_backbones.param_groups import param_groups
    from splitmask_backbones.registry import ENCODERS

    images, look_at = monitoring.prepare(args, images, fabric)
    per_epoch = steps_per_epoch(len(images), recipe.batch_size)
    total_steps = recipe.total_steps(per_epoch)
    if not folder.resumed and folder.is_main:
        (folder.path / TOKENIZER_FILE).unlink(missing_ok=True)  # of a start that failed
    views = build_views(recipe, images, ENCODERS[recipe.model]["patch_size"])
    method: Any = build_method(recipe, views, folder.path, args.workers, args.tokenizer_weights, total_steps, per_epoch)
    print(
        f"{len(images)} images, {total_steps} updates of {recipe.batch_size} "
        f"({total_steps / per_epoch:.1f} epochs), peak lr {recipe.peak_lr:.3g}, {recipe.model}, {fabric.device}"
    )
    optimizer = torch.optim.AdamW(
        param_groups(method, recipe.peak_lr, recipe.weight_decay), betas=(0.9, recipe.beta2), fused=False
    )
    if hasattr(method, "before_update"):
        optimizer.register_step_pre_hook(method.before_update)
    loop = Loop(
        total_steps=total_steps,
        batch_size=recipe.batch_size,
        steps_per_epoch=per_epoch,
        clip_grad=recipe.clip_grad,
        accumulate=recipe.accumulate,
        save_every=args.save_every,
        log_every=args.log_every,
        monitor_every=args.monitor_every or None,
        seed=recipe.seed,
    )
    end = recipe.end_weight_decay
    warmup_steps = round(recipe.warmup_fraction * total_steps)
    fit(
        fabric,
        method,
        optimizer,
        loop=loop,
        lr_at=lambda step: warmup_cosine(step, total_steps, warmup_steps, recipe.end_lr_factor),
        batches=lambda start: step_batches(
            views,
            num_items=len(images),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            start_step=start,
            total_steps=total_steps,
            workers=args.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            accumulate=recipe.accumulate,
        ),
        folder=folder,
        metric_names=method.metric_names,
        title="pre-train",
        after_step=getattr(method, "after_step", None),
        weight_decay_at=None if end is None else lambda step: cosine(step, total_steps, recipe.weight_decay, end),
        monitor=look_at and look_at(method, recipe),
    )
    if fabric.is_global_zero:
        save_encoder(method.encoder, folder.path / ARTEFACT)
        print(f"wrote {folder.path / ARTEFACT}")
        monitoring.draw(folder.path)
        for advice in monitoring.advise(folder.path, recipe.branch_jitter):
            sys.stderr.write(f"warning: {advice}\n")


if __name__ == "__main__":
    cli.run(main)
