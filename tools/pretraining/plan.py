"""The plan of a pre-training: what it will do and why, how long, with how much memory and disk, on one screen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain import own_recipe
from pretrain.data.cache import CachedImages
from pretrain.data.device_views import fits_on_card
from pretrain.data.sources import ImageList, split_holdout
from pretrain.own_recipe import OWN, Derived, Facts
from pretrain.recipes import Recipe
from pretrain.training.compilation import pays
from pretrain.training.cores import usable_cores
from pretrain.training.loader import check_divisible, steps_per_epoch
from pretrain.training.options import NUM_CHECKPOINTS, OFF, ON
from pretrain.training.progress import duration
from pretrain.training.shortage import free_disk
from pretrain.training.workers import prefetch_that_fits
from splitmask_backbones.checkpoints import read_encoder_file
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import encoder_name
from tools.pretraining.cost import MEASURED_FROM, Cost, leaving_nothing, measure, needed_memory
from tools.pretraining.machine import Sizes, free_memory, sizes_of, warn_of_unreadable

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from tools.pretraining.options import PretrainOptions

GIVEN = "given"


@dataclass(frozen=True)
class Plan:
    """What a run is going to be.

    Attributes:
        recipe: all values.
        reasons: why, by the name of a value; empty for recipes that derive nothing.
        num_images: to train on.
        sizes: of the images.
        device: in words.
        memory: bytes that one process may use, cached images on its card aside.
        free: bytes of the disk.
        cost: what was measured; None for a run that is too short for it.
        processes: of the run.
        cache: where decoded images are kept.
        is_uncached: whether they were measured without the cache that the run will have.
    """

    recipe: Recipe
    reasons: dict[str, str]
    num_images: int
    sizes: Sizes
    device: str
    memory: int
    free: int
    cost: Cost | None
    processes: int
    cache: str
    is_uncached: bool = False

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints, the one that is being written included, and of the encoder."""
        return 0 if self.cost is None else (NUM_CHECKPOINTS + 2) * self.cost.checkpoint_bytes

    def record(self) -> dict[str, Any]:
        """Returns what config.json keeps of it."""
        cost = {} if self.cost is None else dataclasses.asdict(self.cost)
        return {"reasons": self.reasons, "short_side": self.sizes.short_side, "memory": self.memory, **cost}


def make_plan(
    name: str,
    named: Recipe,
    given: dict[str, Any],
    images: ImageList,
    options: PretrainOptions,
    fabric: Fabric,
    init: Path | None,
) -> Plan:
    """Returns the plan of a run that begins; to be called in all processes.

    Args:
        name: of the recipe.
        named: its values, those that are given aside.
        given: recipe values of the command line, precision included.
        images: all that there are.
        options: of the command line.
        fabric: device, precision, processes.
        init: encoder file to begin with.

    Raises:
        ValueError: what is derived cannot work, or memory, disk, shared memory or time do not suffice.
    """
    if options.holdout:
        images = split_holdout(images, options.holdout)[0]
    memory, sizes = fabric.broadcast((free_memory(fabric.device), sizes_of(images)))
    if options.plan and fabric.is_global_zero:
        warn_of_unreadable(images, options.max_bad_fraction)
    reasons: dict[str, str] = {}
    if name == OWN:
        model = None if init is None else encoder_name(read_encoder_file(init).config)
        facts = Facts(len(images), sizes.short_side, fabric.device.type, memory, fabric.world_size, model)
        derived = own_recipe.derive(facts, given)
        recipe = _with(named, given, derived)
        reasons = {key: why for key, (_, why) in derived.items()}
        reasons["precision"] = own_recipe.choose_precision(named.precision == "bf16")[1]
    else:
        recipe = named.override(given)
    check_divisible(recipe.batch_size, fabric.world_size, recipe.accumulate)
    memory -= resident_bytes(recipe, options.cache or OFF, sizes.area * len(images), fabric.device)
    per_epoch = steps_per_epoch(len(images), recipe.batch_size)
    derives_length = name == OWN and not _has_length(given)
    is_bounded = derives_length or options.hours is not None
    cost: Cost | None = None
    if options.plan or is_bounded or recipe.total_steps(per_epoch) >= MEASURED_FROM:

        def split(fixed: float, per_image: float) -> int:
            parts = recipe.accumulate
            if divides:
                parts, why = own_recipe.choose_accumulate(recipe, fabric.world_size, fixed, per_image, memory)
                reasons["accumulate"] = why
            divided = dataclasses.replace(recipe, accumulate=parts)
            _check_memory(divided, fabric.world_size, fixed, per_image, memory)
            return parts

        whole, divides = recipe, name == OWN and "accumulate" not in given and not recipe.cuda_graph
        # A length that is yet to be found is found without a compiler first, whose steps would be shorter.
        compiled = pays(recipe.compile, fabric.device, 0 if is_bounded else recipe.total_steps(per_epoch))
        for compiles in (compiled, True):
            as_it_runs = dataclasses.replace(whole, compile=ON if compiles else OFF)
            with leaving_nothing(fabric.device, compiles):
                recipe, cost = measure(as_it_runs, images, options, fabric, init, split)
            recipe = dataclasses.replace(recipe, compile=whole.compile)
            if is_bounded:
                recipe, cost, why = _with_length(
                    recipe, cost, given, len(images), fabric.world_size, options.hours, derives_length
                )
                reasons |= why
                if "batch_size" in why and divides:  # a smaller batch has fewer parts
                    parts, reasons["accumulate"] = own_recipe.choose_accumulate(
                        recipe, fabric.world_size, cost.fixed_bytes, cost.bytes_per_image, memory
                    )
                    recipe = dataclasses.replace(recipe, accumulate=parts)
            if compiles or not pays(recipe.compile, fabric.device, recipe.total_steps(per_epoch)):
                break
        reasons = fabric.broadcast(reasons)
    if name == OWN:
        by_length = own_recipe.choose_for_length(recipe.total_steps(per_epoch), recipe.crop_scale_max)
        by_length["base_lr"] = own_recipe.choose_base_lr(recipe.batch_size)
        by_length = own_recipe.used(by_length, given)
        recipe = recipe.override({key: value for key, (value, _) in by_length.items()})
        reasons |= {key: why for key, (_, why) in by_length.items()} | dict.fromkeys(given, GIVEN)
        if "lr" in given:
            reasons.pop("base_lr", None)  # it would explain what has no effect
    kind = fabric.device.type
    device = f"{kind}, {usable_cores()} cores" if kind == "cpu" else str(fabric.device)
    free = fabric.broadcast(free_disk(options.output))
    cache = options.cache or OFF
    uncached = cache != OFF and not isinstance(images, CachedImages)
    plan = Plan(recipe, reasons, len(images), sizes, device, memory, free, cost, fabric.world_size, cache, uncached)
    _check(plan, options)
    return plan


def resident_bytes(recipe: Recipe, cache: str, num_pixels: float, device: torch.device) -> int:
    """Returns the bytes of a card that cached images are going to take beside the steps, see `resident_pixels`."""
    if device.type == "cpu" or recipe.crops == "cpu" or cache == OFF:
        return 0
    num_bytes = round(3 * num_pixels)
    return num_bytes if fits_on_card(num_bytes, device) else 0


def _with_length(
    recipe: Recipe,
    cost: Cost,
    given: dict[str, Any],
    num_images: int,
    processes: int,
    hours: float | None,
    derives_length: bool,
) -> tuple[Recipe, Cost, dict[str, str]]:
    """Returns the recipe with the steps that the hours allow, what it then takes, and why."""
    reasons = {}
    if derives_length:
        size, why = own_recipe.choose_smaller_batch(recipe, processes, cost.step_seconds, hours)
        if size < recipe.batch_size and "batch_size" not in given:
            reasons["batch_size"] = why
            cost = dataclasses.replace(cost, step_seconds=cost.step_seconds * size / recipe.batch_size)
            recipe = recipe.override({"batch_size": size})
        steps, reasons["steps"] = own_recipe.choose_steps(num_images, recipe.batch_size, cost.step_seconds, hours)
        return recipe.override({"steps": steps}), cost, reasons
    assert hours is not None
    wanted = recipe.total_steps(steps_per_epoch(num_images, recipe.batch_size))
    steps, reasons["steps"] = own_recipe.bounded(wanted, "the recipe's", recipe.batch_size, cost.step_seconds, hours)
    return recipe if steps == wanted else recipe.override({"steps": steps}), cost, reasons


def _has_length(given: dict[str, Any]) -> bool:
    return given.get("steps") is not None or given.get("epochs") is not None


def _with(named: Recipe, given: dict[str, Any], derived: Derived) -> Recipe:
    return named.override({**{key: value for key, (value, _) in derived.items()}, **given})


def _check_memory(recipe: Recipe, processes: int, fixed: float, per_image: float, memory: float) -> None:
    """Raises ValueError where a step needs more than there is; before one is made, which would end with less to say.

    Args:
        fixed: bytes of a step, whatever its batch.
        per_image: bytes of each image of a micro-batch.
        memory: bytes that are free.
    """
    local = recipe.batch_size // (processes * recipe.accumulate)
    needed = needed_memory(recipe, processes, fixed, per_image)
    if needed <= memory:
        return
    have = f"needs about {_gb(needed)} of memory in a process, and {_gb(memory)} are free"
    if local == 1:
        raise UserError(f"--model {recipe.encoder_title} {have}: use a smaller --model or --img-size")
    fitting = (own_recipe.MEMORY_SHARE * memory - fixed) / per_image
    parts = next(n for n in range(2, local + 1) if local % n == 0 and (local // n <= fitting or n == local))
    kept = "all images stay negatives, for one more forward pass" if recipe.grad_cache else "fewer negatives"
    raise UserError(
        f"--batch-size {recipe.batch_size} {have}: use --accumulate {recipe.accumulate * parts} ({kept}), or "
        f"--batch-size {recipe.batch_size // parts}"
    )


def _check(plan: Plan, options: PretrainOptions) -> None:
    """Raises ValueError where the machine has too little disk, or shared memory for the data workers."""
    cost, recipe = plan.cost, plan.recipe
    if cost is None:
        return
    if plan.disk > plan.free:
        raise UserError(
            f"--output {options.output}: {NUM_CHECKPOINTS} checkpoints and what is written beside them need "
            f"{_gb(plan.disk)}, and {_gb(plan.free)} are free: make room, or choose another --output"
        )
    local = recipe.batch_size // (plan.processes * recipe.accumulate)
    prefetch_that_fits(local * cost.item_bytes, options.workers)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def told(name: str, plan: Plan) -> list[str]:
    """Returns the plan in lines: what, and why."""
    r, sizes = plan.recipe, plan.sizes
    sides = (
        f"{sizes.short_side} px"
        if sizes.smallest == sizes.largest
        else (f"{sizes.short_side} px ({sizes.smallest} to {sizes.largest})")
    )
    per_epoch = steps_per_epoch(plan.num_images, r.batch_size)
    steps = r.total_steps(per_epoch)
    rows: list[tuple[str, str, tuple[str, ...]]] = [
        ("model", r.encoder_title, ("model", "embed_dim", "depth")),
        ("crop", f"{r.img_size} px, {r.crop_scale:.0%} to {r.crop_scale_max:.0%} of an image", ("img_size",)),
        ("batch", f"{r.batch_size}" + (f" in {r.accumulate} parts" if r.accumulate > 1 else ""), ("batch_size",)),
        ("length", f"{steps:,} steps, {steps / per_epoch:,.0f} epochs", ("steps", "epochs")),
        ("lr", f"{r.peak_lr:.2g}", ("base_lr", "lr")),
        ("warm-up", f"{r.warmup_fraction:.0%}, drop path {r.drop_path:g}", ("warmup_fraction", "drop_path")),
        ("precision", r.precision, ("precision",)),
    ]
    if r.accumulate > 1:
        rows.insert(3, ("parts", f"{r.batch_size // r.accumulate} images", ("accumulate",)))
    if r.method == "splitmask":
        rows.append(("mask", f"{r.mask}, {r.mask_ratio:.0%}", ("mask",)))
        matching = f"weight {r.match_weight:g}" + (f", branch jitter {r.branch_jitter:g}" if r.branch_jitter else "")
        rows.append(("matching", matching, ("match_weight", "branch_jitter")))
    if r.method != "dino":
        rows.append(("augmentation", "strong" if r.strong_augment else "crop and flip", ("strong_augment",)))
    if r.method == "dino":
        rows.append(("outputs", f"{r.dino_outputs}", ("dino_outputs",)))
    if r.qk_limit is not None:
        rows.append(("attention", f"queries and keys up to {r.qk_limit:g}", ("qk_limit",)))
    if r.uses_tokens:
        rows.append(("codebook", f"{r.tokenizer}, {r.vocab_size} words", ("tokenizer", "vocab_size")))
    table = [
        (title, shown, "; ".join(dict.fromkeys(plan.reasons[key] for key in keys if key in plan.reasons)))
        for title, shown, keys in rows
    ]
    table += _needs(plan, steps)
    wide = max(len(shown) for _, shown, _ in table)
    head = f"--recipe {name}, --method {r.method}: {plan.num_images:,} images, shorter side {sides}; {plan.device}"
    if plan.processes > 1:
        head += f", {plan.processes} processes"
    return [head, *(f"  {title:13} {shown:{wide}}  {why}".rstrip() for title, shown, why in table)]


def _needs(plan: Plan, steps: int) -> list[tuple[str, str, str]]:
    cache_bytes = 3 * plan.sizes.area * plan.num_images
    cache = f"cache {plan.cache}, decoded images are {_gb(cache_bytes)}"
    if plan.cost is None:
        why = f"not measured for fewer than {MEASURED_FROM} steps: --plan does it"
        return [("time, memory", "short", why), ("disk", f"{_gb(plan.free)} free", cache)]
    cost = plan.cost
    image = f"{1e3 * cost.item_seconds:.3g} ms to read an image"
    if plan.is_uncached:
        image += " from its file; less once it is cached"
    used = cost.memory(plan.recipe, plan.processes)
    checkpoints = f"{NUM_CHECKPOINTS} checkpoints of {_gb(cost.checkpoint_bytes)}; {cache}"
    return [
        ("time", f"about {duration(steps * cost.step_seconds)}", f"{cost.step_seconds:.2g} s a step measured, {image}"),
        ("memory", f"about {_gb(used)} of {_gb(plan.memory)}", f"{_gb(cost.bytes_per_image)} an image measured"),
        ("disk", f"{_gb(plan.disk)} of {_gb(plan.free)}", checkpoints),
    ]
