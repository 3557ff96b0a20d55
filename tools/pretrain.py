"""Pre-trains a plain ViT with SplitMask (BEiT, DINO) on your own images: writes encoder.safetensors into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.own_recipe import HOURS, OWN
from pretrain.recipes import RECIPES, Recipe, get_recipe
from pretrain.training.options import OFF
from splitmask_backbones.run_files import CHECKPOINTS, CONFIG, ENCODER, REHEARSAL_RECORD
from tools import cli, monitoring
from tools.pretraining.options import PretrainOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pretrain.data.sources import ImageList
    from pretrain.training.rehearsal import Rehearsal
    from pretrain.training.run_folder import RunFolder


def build_parser() -> cli.Parser:
    """Returns the parser: one option for every recipe value, defaults from the recipes."""
    recipes = "\n".join(
        f"  {name:20}{about}; {r.model}, {f'{r.epochs} epochs' if r.epochs else f'{r.steps} steps'}, "
        f"batch {r.batch_size}, lr {r.peak_lr:.2g}"
        if name != OWN
        else f"  {name:20}{about}; everything is derived from them and the machine: --plan shows what, and why"
        for name, (about, r) in RECIPES.items()
    )
    parser = cli.Parser(
        prog="tools/pretrain.py",
        description=__doc__,
        epilog=f"recipes:\n{recipes}\n\nDefaults shown are those of most recipes; a recipe's own values win.\n"
        "Several GPUs: torchrun --nproc-per-node=8 tools/pretrain.py ...",
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help="see the list below")
    text = "image folder, text list, COCO json, or ADE20K root; may be repeated"
    parser.add_argument("--data", required=True, action="append", metavar="PATH", help=text)
    parser.add_argument("--images", metavar="ROOT", help="image folder of a COCO json")
    cli.add_selection(parser)
    parser.add_argument("--tokenizer-weights", metavar="FILE", help="safetensors of DALL-E's encoder")
    cache = "keep decoded images in DIR, or in the user's own cache folder (auto); the result is the same (default off)"
    parser.add_argument("--cache", default="off", metavar="auto|off|DIR", help=cache)
    text = "begin with these weights: any encoder file or folder that tools/convert.py reads"
    parser.add_argument("--init", metavar="FILE", help=text)
    cli.add_output(parser)
    text = "say what the run will do and why, measure what it takes of time, memory and disk, and stop"
    parser.add_argument("--plan", action="store_true", help=text)
    text = f"the training may take so long: fewer steps if need be (default {HOURS:g} for --recipe own, else no bound)"
    parser.add_argument("--hours", type=cli.positive_float, metavar="H", help=text)
    cli.add_run_options(parser)
    cli.add_bad_fraction(parser)
    monitoring.add_options(parser)
    cli.add_values(parser, Recipe)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    named, given, options = get_recipe(args.recipe), cli.given_values(args, Recipe), _options(args)
    recipe = named.override(given)  # option errors come before anything is imported or created
    if not options.resume:
        recipe.check_tokenizer_weights(options.tokenizer_weights)
        options.check_monitoring()
        options.check_output()
    options.check_plan(args.recipe, given)
    options.check_cache_word()
    from pretrain.data.several import check_sources

    check_sources(args.data, args.images)
    cli.start_log()
    from tools.pretraining.machine import check_versions

    check_versions()
    from pretrain.training.rehearsal import Rehearsal
    from pretrain.training.run_folder import RunFolder
    from pretrain.training.signals import StopSignals

    rehearsal = Rehearsal() if options.rehearse else None
    artefact = REHEARSAL_RECORD if rehearsal else ENCODER
    with ExitStack() as stack:
        stack.enter_context(StopSignals())
        # A plan leaves no trace in the output folder.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if options.plan else options.output
        folder = stack.enter_context(
            RunFolder.open(place, resume=options.resume, artefact=artefact, anew=options.rehearse)
        )
        _run(args, named, given, options, folder, rehearsal)
    return 0


def _run(
    args: argparse.Namespace,
    named: Recipe,
    given: dict[str, Any],
    options: PretrainOptions,
    folder: RunFolder,
    rehearsal: Rehearsal | None,
) -> None:
    """Settles all values, reads the images, and trains or plans.

    Args:
        args: the command line.
        named: the recipe of its name.
        given: values that it gives beside it.
        options: the others.
        folder: open and locked; a temporary one for a plan.
        rehearsal: in place of a result, where it is one.
    """
    from pretrain.data.several import open_sources
    from pretrain.data.sources import split_holdout
    from tools.pretraining.images import readable_images, with_range
    from tools.pretraining.plan import make_plan, told
    from tools.pretraining.record import config_of, recipe_of, with_precision
    from tools.pretraining.start import prepare_start
    from tools.pretraining.train import length_of, train

    named = with_precision(args.recipe, named, options.device)
    recipe = recipe_of(args.recipe, named, given, folder.previous)
    options = options.settled(recipe, folder.previous)
    fabric = _fabric(recipe, options)
    source = open_sources(options.data, options.images, options.include or [], options.exclude or [])
    source = with_range(source, options.range, folder.previous, fabric)
    if rehearsal and args.recipe != OWN:
        source = _a_few(source, rehearsal, recipe, options)
    init, digest = prepare_start(args.init, folder)  # before the check of the images, which may take hours
    init = fabric.broadcast(init)  # a plan's lies in a folder of the main process's own
    images, data = source, dict[str, Any]()
    if not options.plan:
        cache = OFF if rehearsal else options.cache
        images, data = readable_images(source, folder, fabric, options.workers, options.max_bad_fraction, cache)
    planned: dict[str, Any] = {}
    if folder.previous is None and (args.recipe == OWN or not rehearsal):
        plan = make_plan(args.recipe, named, given, images, options, fabric, init)
        recipe, planned = plan.recipe, plan.record()
        if fabric.is_global_zero:
            print("\n".join(told(args.recipe, plan)), flush=True)
    if options.plan:
        _say_what_next(options, fabric)
        return
    if rehearsal and args.recipe == OWN:
        images = _a_few(images, rehearsal, recipe, options)
    trained = split_holdout(images, options.holdout)[0] if options.holdout else images
    steps = length_of(recipe, trained, rehearsal)[0]
    folder.write_config(config_of(args.recipe, recipe, options, data, fabric, init, digest, planned, steps))
    if folder.finished:
        cli.say(folder, f"{folder.path / ENCODER} is finished: nothing to do")
        return
    train(recipe, images, folder, options, fabric, rehearsal, init)


def _fabric(recipe: Recipe, options: PretrainOptions) -> Fabric:
    """Returns device, precision and processes of the run, where a CUDA graph can be one if that is asked for."""
    from pretrain.training.distributed import make_fabric
    from pretrain.training.static_step import check_graph

    # A codebook need not be sent with each step: no method here has batch statistics.
    fabric = make_fabric(recipe.precision, options.device, deterministic=options.deterministic, broadcast_buffers=False)
    if recipe.cuda_graph:
        capturable = recipe.method != "dino" and recipe.end_weight_decay is None
        check_graph(fabric, accumulate=recipe.accumulate, capturable=capturable)
    return fabric


def _options(args: argparse.Namespace) -> PretrainOptions:
    return PretrainOptions.of(vars(args), output=cli.rehearsal_output(Path(args.output), args.rehearse, args.resume))


def _a_few(images: ImageList, rehearsal: Rehearsal, recipe: Recipe, options: PretrainOptions) -> ImageList:
    """Returns the images of a rehearsal, which is told how many the whole run trains on."""
    from pretrain.data.sources import split_holdout

    few = images.subset(rehearsal.a_few(images.names, "train", recipe.batch_size))
    if options.holdout:
        rehearsal.num_images["train"] = len(split_holdout(images, options.holdout)[0])
    return few


def _say_what_next(options: PretrainOptions, fabric: Fabric) -> None:
    held = [name for name in (CONFIG, CHECKPOINTS, ENCODER) if (options.output / name).exists()]
    if fabric.is_global_zero:
        if held:
            print(f"a plan: nothing was written. {options.output} holds a run ({held[0]}): choose another --output")
        else:
            print("a plan: nothing was written. Without --plan the run begins")


if __name__ == "__main__":
    cli.run(main)
