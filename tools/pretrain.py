"""Pre-trains a plain ViT with SplitMask (BEiT, DINO) on your own images: writes encoder.safetensors into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import dataclasses
import logging
import os
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.own_recipe import HOURS, OWN, choose_precision
from pretrain.recipes import BEFORE, RECIPES, Recipe, get_recipe
from pretrain.training.options import REHEARSAL_ENCODER, REHEARSAL_RECORD
from splitmask_backbones.errors import UserError
from tools import cli, monitoring
from tools.pretraining.options import PretrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_fabric import Fabric

    from pretrain.data.sources import ImageList
    from pretrain.data.views import Views
    from pretrain.training.loop import Loop
    from pretrain.training.rehearsal import Rehearsal
    from pretrain.training.run_folder import RunFolder

ARTEFACT = "encoder.safetensors"
KEPT = ("init", "tokenizer_weights", "include", "exclude", *monitoring.OPTIONS)
"""Options beside the recipe's that a resume keeps where they are omitted."""
FREE = ("data", "cache", "workers", "save_every", "log_every", "max_bad_fraction", *KEPT)
"""Options that a resume may change."""

logger = logging.getLogger("tools.pretrain")


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
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="image folder, text list, COCO json, or ADE20K root"
    )
    parser.add_argument("--images", metavar="ROOT", help="image folder of a COCO json")
    for name, what in (("include", "take only images"), ("exclude", "leave out images")):
        text = f"{what} whose path or file name matches; may be repeated"
        parser.add_argument(f"--{name}", action="append", metavar="GLOB", help=text)
    text = "values that become 0 and 255 where images have more than 8 bits (default: percentiles of the data)"
    parser.add_argument("--range", type=cli.value_range, metavar="LOW,HIGH", help=text)
    parser.add_argument("--tokenizer-weights", metavar="FILE", help="safetensors of DALL-E's encoder")
    cache = "keep decoded images in DIR, or in the user's own cache folder (auto); the result is the same (default off)"
    parser.add_argument("--cache", default="off", metavar="auto|off|DIR", help=cache)
    text = "begin with these weights: any encoder file or folder that tools/convert.py reads"
    parser.add_argument("--init", metavar="FILE", help=text)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
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
    options.check_plan(given)
    cli.start_log()
    from tools.pretraining.machine import check_versions

    check_versions()
    from pretrain.data.sources import open_source
    from pretrain.training.rehearsal import Rehearsal
    from pretrain.training.run_folder import RunFolder
    from pretrain.training.signals import StopSignals

    rehearsal = Rehearsal() if options.rehearse else None
    artefact = REHEARSAL_RECORD if rehearsal else ARTEFACT
    with ExitStack() as stack:
        stack.enter_context(StopSignals())
        # A plan leaves no trace in the output folder.
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if options.plan else options.output
        folder = stack.enter_context(
            RunFolder.open(place, resume=options.resume, artefact=artefact, anew=options.rehearse)
        )
        from pretrain.training.distributed import make_fabric
        from pretrain.training.static_step import check_graph
        from tools.pretraining.images import readable_images, with_range
        from tools.pretraining.plan import make_plan, told
        from tools.pretraining.start import prepare_start

        folder.assume({"values": BEFORE})
        named = _with_precision(args.recipe, named, options.device)
        recipe = _recipe_of(args.recipe, named, given, folder.previous)
        before = (folder.previous or {}).get("free", {})
        options.check_monitoring(before.get("monitor_every"))
        omitted = [name for name in KEPT if getattr(options, name) is None]
        options = dataclasses.replace(options, **{name: before.get(name) for name in omitted})
        if options.hours is None:
            options = dataclasses.replace(options, hours=(folder.previous or {}).get("--hours"))
        recipe.check_tokenizer_weights(options.tokenizer_weights)
        options.check_cache(recipe.reduced_jpeg)
        options = dataclasses.replace(options, deterministic=options.is_deterministic(folder.previous))
        fabric = make_fabric(recipe.precision, options.device, deterministic=options.deterministic)
        if recipe.cuda_graph:
            capturable = recipe.method != "dino" and recipe.end_weight_decay is None
            check_graph(fabric, accumulate=recipe.accumulate, capturable=capturable)
        # Runs of earlier versions took label files and evaluation images for images.
        automatic = folder.previous is None or before.get("labels_left_out", False)
        include, exclude = options.include or [], options.exclude or []
        source = open_source(options.data, options.images, include, exclude, automatic)
        source = with_range(source, options.range, folder.previous, fabric)
        if rehearsal and args.recipe != OWN:
            source = source.subset(rehearsal.a_few(source.names, "train", recipe.batch_size))
        images, data = (source, {}) if options.plan else readable_images(source, folder, options, fabric)
        init, digest = prepare_start(args.init, folder)
        init = fabric.broadcast(init)  # a plan's lies in a folder of the main process's own
        planned: dict[str, Any] = {}
        if folder.previous is None and (args.recipe == OWN or not rehearsal):
            plan = make_plan(args.recipe, named, given, images, options, fabric, init)
            recipe, planned = plan.recipe, plan.record()
            if fabric.is_global_zero:
                print("\n".join(told(args.recipe, plan)), flush=True)
        if options.plan:
            return _say_what_next(options, fabric)
        if rehearsal and args.recipe == OWN:
            images = images.subset(rehearsal.a_few(images.names, "train", recipe.batch_size))
        folder.write_config(_config(args.recipe, recipe, options, data, fabric, init, digest, planned))
        if folder.finished:
            print(f"{folder.path / ARTEFACT} is finished: nothing to do")
            return 0
        _train(recipe, images, folder, options, fabric, rehearsal, init)
    return 0


def _options(args: argparse.Namespace) -> PretrainOptions:
    if not args.output.strip():
        raise UserError("--output is empty: name a folder")
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(PretrainOptions)}
    output = cli.rehearsal_output(Path(args.output), args.rehearse, args.resume)
    return PretrainOptions(**{**values, "output": output})


def _recipe_of(name: str, named: Recipe, given: dict[str, Any], previous: dict[str, Any] | None) -> Recipe:
    """Returns the recipe with the options given; on a resume, omitted options keep the values of the run."""
    if previous is None:
        return named.override(given)
    if previous.get("recipe") != name:
        raise UserError(
            f"--resume: the run in --output has --recipe {previous.get('recipe')} and not {name}: "
            "name the old recipe, or start anew in another --output"
        )
    old = Recipe(**previous["values"])
    if name == OWN:
        return old.override(given)
    if "epochs" in given and old.steps is not None or "steps" in given and old.epochs is not None:
        return named.override(given)
    return old.override(given)


def _with_precision(name: str, named: Recipe, device: str) -> Recipe:
    if name != OWN:
        return named
    import torch

    has_gpu = device != "cpu" and torch.cuda.is_available()
    return dataclasses.replace(named, precision=choose_precision(has_gpu and torch.cuda.is_bf16_supported())[0])


def _say_what_next(options: PretrainOptions, fabric: Fabric) -> int:
    from pretrain.training.run_folder import CHECKPOINTS, CONFIG

    held = [name for name in (CONFIG, CHECKPOINTS, ARTEFACT) if (options.output / name).exists()]
    if fabric.is_global_zero:
        if held:
            print(f"a plan: nothing was written. {options.output} holds a run ({held[0]}): choose another --output")
        else:
            print("a plan: nothing was written. Without --plan the run begins")
    return 0


def _config(
    name: str,
    recipe: Recipe,
    options: PretrainOptions,
    data: dict[str, Any],
    fabric: Fabric,
    init: Path | None,
    init_digest: str | None,
    planned: dict[str, Any],
) -> dict[str, Any]:
    import torch

    from pretrain.methods.build import build_encoder
    from splitmask_backbones.files import sha256_of

    return {
        "command": "pretrain",
        "recipe": name,
        "values": dataclasses.asdict(recipe),
        "encoder": build_encoder(recipe, init).config,
        "data": data,
        **({"rehearsal": True} if options.rehearse else {}),
        **({"--tokenizer-weights": sha256_of(options.tokenizer_weights)} if options.tokenizer_weights else {}),
        **({"--init": init_digest} if init else {}),
        **({"--holdout": options.holdout} if options.holdout else {}),
        **({"--hours": options.hours} if options.hours is not None else {}),
        "free": {
            **{key: getattr(options, key) for key in FREE},
            "labels_left_out": True,
            "plan": planned,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": fabric.world_size,
            "device": fabric.device.type,
            "deterministic": options.deterministic,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        },
    }


def _train(
    recipe: Recipe,
    images: ImageList,
    folder: RunFolder,
    options: PretrainOptions,
    fabric: Fabric,
    rehearsal: Rehearsal | None,
    init: Path | None,
) -> None:
    from pretrain.methods.build import build_method, build_optimizer, build_views
    from pretrain.tokenizers.build import TOKENIZER_FILE
    from pretrain.training.compilation import compile_blocks, pays
    from pretrain.training.loader import steps_per_epoch
    from pretrain.training.loop import Loop, fit
    from pretrain.training.model_card import write_model_card
    from pretrain.training.schedule import cosine, warmup_cosine
    from splitmask_backbones import save_encoder
    from splitmask_backbones.registry import ENCODERS
    from tools.pretraining.start import lineage_of

    images, make_monitor = monitoring.prepare(options, images, fabric, options.workers)
    per_epoch = steps_per_epoch(rehearsal.num_images["train"] if rehearsal else len(images), recipe.batch_size)
    total_steps = recipe.total_steps(per_epoch)
    if not folder.resumed and folder.is_main:
        (folder.path / TOKENIZER_FILE).unlink(missing_ok=True)  # of a start that failed
    views = build_views(recipe, images, ENCODERS[recipe.model]["patch_size"])
    method = build_method(
        recipe,
        views,
        folder.path,
        options.workers,
        options.tokenizer_weights,
        init,
        total_steps=total_steps,
        steps_per_epoch=per_epoch,
    )
    print(
        f"{len(images)} images, {total_steps} steps of {recipe.batch_size} "
        f"({total_steps / per_epoch:.1f} epochs), peak lr {recipe.peak_lr:.3g}, {recipe.model}, {fabric.device}"
    )
    if pays(recipe.compile, fabric.device, total_steps):
        compile_blocks(method)
    cached = method if recipe.accumulate > 1 and recipe.grad_cache and method.couples else None
    if cached is not None:
        print(f"{recipe.accumulate} micro-batches a step, matched among all of them: one forward pass more for each")
    optimizer = build_optimizer(method, recipe, fabric.device)
    loop = Loop.of(
        recipe,
        options,
        total_steps,
        per_epoch,
        clip_per_parameter=recipe.clip_per_parameter,
        monitor_every=options.monitor_every,
    )
    after_step: Callable[[int], None] = method.after_step
    if rehearsal:
        after_step = rehearsal.after(method.after_step)
        rehearsal.begin_training()
    end = recipe.end_weight_decay
    warmup_steps = round(recipe.warmup_fraction * total_steps)
    fit(
        fabric,
        method,
        optimizer,
        loop=loop,
        lr_at=lambda step: warmup_cosine(step, total_steps, warmup_steps, recipe.end_lr_factor),
        batches=_batches(recipe, views, loop, fabric, options.workers),
        folder=folder,
        metric_names=method.metric_names,
        title="pre-train",
        after_step=after_step,
        weight_decay_at=None if end is None else lambda step: cosine(step, total_steps, recipe.weight_decay, end),
        monitor=make_monitor and make_monitor(method, recipe),
        cached=cached,
        static=recipe.cuda_graph,
    )
    if rehearsal:
        if fabric.is_global_zero:
            rehearsal.end_training(folder.path)
            save_encoder(method.encoder, folder.path / REHEARSAL_ENCODER, lineage=lineage_of(init))
            entry = rehearsal.record("pretrain", loop, fabric, recipe.precision, num_evaluations=0)
            rehearsal.write(folder, entry)
    elif fabric.is_global_zero:
        # The card first: a run whose encoder is there is finished, and a resume leaves it alone.
        write_model_card(folder.path, lineage_of(init))
        save_encoder(method.encoder, folder.path / ARTEFACT, lineage=lineage_of(init))
        print(f"wrote {folder.path / ARTEFACT}")
        monitoring.draw(folder.path)
        for advice in monitoring.advise(folder.path, recipe.branch_jitter):
            logger.warning(advice)


def _batches(recipe: Recipe, views: Views, loop: Loop, fabric: Fabric, workers: int) -> Callable[[int], Iterator[Any]]:
    """Returns what gives the micro-batches from a step on, their crops made where the recipe says."""
    from pretrain.training.loop import batches_of

    if recipe.crops == "cpu":
        return batches_of(views, loop, fabric, workers)
    from pretrain.data.device_views import BoxViews, DeviceBatches, collate, resident_pixels

    resident = resident_pixels(views, fabric.device)
    where = "sent by the data processes" if resident is None else f"of {resident.numel() / 1e9:.1f} GB of cached images"
    print(f"crops are made on {fabric.device}, {where}")
    boxes = batches_of(BoxViews(views, resident is not None), loop, fabric, workers, collate)
    return lambda start: DeviceBatches(boxes(start), fabric, recipe.img_size, resident)


if __name__ == "__main__":
    cli.run(main)
