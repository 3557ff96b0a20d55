"""The recipe `own`: what is derived from images and machine, each value with its reason. Pure and free of torch.

Every number below is the project's own choice (ours) unless it names the paper; to change a default, change it here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pretrain.recipes import METHOD_VALUES, RECIPES, REFERENCE_BATCH, Recipe
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS

OWN = "own"
PAPER = RECIPES["coco"][1]

FEW_IMAGES = 1_000
"""Below, ViT-Ti: a larger encoder learns the images by heart."""
MANY_IMAGES, BASE_MEMORY = 100_000, 32e9
"""From so many images on, where so many bytes are there, ViT-B: in the paper it gains 1.5 box AP on COCO (Table 3)."""
SMALL_MEMORY = 6e9
"""Bytes of a GPU below which ViT-S at 224 px is slow, because its batch falls into many parts."""

TINY_SET = 10_000
"""Below, uniform masks of 75 % and strong augmentation, as the paper's Cars (8,144 images); ADE20K (20,210) and 1 % of
ImageNet (12,812) have blocks. The paper's DomainNet sets (34,019 to 52,867 drawings) are not followed."""

LARGEST_CROP, LARGEST_CROP_CPU, SMALLEST_CROP = 224, 128, 64
CROP_STEP = 32
"""Two patches: their number is even then."""

BATCH_SIZE, BATCH_SIZE_CPU = 2048, 64
STEPS_PER_EPOCH = 4
"""At least: what the paper's Cars have (8,144 images in batches of 2048)."""

VOCAB_SIZE, SMALLEST_VOCAB, PATCHES_PER_WORD = 8192, 64, 12
"""The paper's V, and how many patches of one crop of every image there are for each word, at least."""
KMEANS_FROM, KMEANS_VOCAB = 64, 2048
"""Images from which on there are enough patches for k-means, and vectors that it finds in a minute."""
DINO_OUTPUTS_TINY = 4096

SMALL = RECIPES["small"][1]
"""What the study found for a few hundred images (docs/study/ablation.md): a k-means codebook, because one vector of a
random projection covers most patches of images that look alike; little weight on matching, and each branch in colours
of its own, because matching goes by colours; and, for few images are seen often, a limit against the collapse of
attention."""

PAPER_CROPS = 300 * 1_281_167
"""Crops that the paper looks at in all: ImageNet's 300 epochs, and about as many on COCO, ADE20K, iNat and Food."""
LARGEST_EPOCHS = 5_000
"""On Cars, more epochs make it worse (App. D)."""
HOURS = 4.0
"""An afternoon, where --hours does not say otherwise."""
TRAINING_SHARE = 0.95
"""Of the hours; the rest is for the codebook and the checkpoints."""
SMALLEST_STEPS, SMALLEST_BATCH = 100, 8
"""Fewer steps teach nothing: a batch is rather halved, down to so many images."""

SHORT_RUN = 18_000
SHORT: dict[str, Any] = {"warmup_fraction": 0.1, "drop_path": 0.0, "crop_scale": 0.2}
"""Steps below which these values take the place of the paper's, those of the recipe `small` but for
its smaller crops, which are for things smaller than a patch. The study's longest runs with them have 16,000, the
paper's shortest 19,883 (Cars)."""

SMALL_BATCH, SMALL_BATCH_BASE_LR = 64, 4e-3
"""What the study found (docs/study/ablation.md). By the linear rule alone, the paper's rate at a batch of 2048 would
be a third of it there: AdamW's best rate falls slower than its batch."""

MEMORY_SHARE = 0.8
"""Part of a step's memory that is measured. What is needed for moments only is the rest: on a CPU, ViT-Ti with 16 and
with 128 images took 318 and 1,479 MB, of which 249 and 1,177 MB were measured."""


@dataclass(frozen=True)
class Facts:
    """What is derived from.

    Attributes:
        num_images: to train on.
        short_side: median of the images' shorter sides, pixels.
        device: "cpu" or "cuda".
        memory: bytes that one process may use.
        processes: of the run.
        init_model: of the encoder to begin with; None for random initialisation.
    """

    num_images: int
    short_side: int
    device: str
    memory: int
    processes: int = 1
    init_model: str | None = None


Derived = dict[str, tuple[Any, str]]
"""Value and reason by the name of the recipe's value."""


def choose_precision(has_bf16: bool) -> tuple[str, str]:
    """Returns the precision of a device that computes in bfloat16, or of another."""
    return ("bf16", "the device computes in bfloat16") if has_bf16 else ("32", "the device has no bfloat16")


def choose_model(facts: Facts) -> tuple[str, str]:
    """Returns the encoder by the number of images and the memory."""
    if facts.init_model is not None:
        return facts.init_model, "the encoder of --init"
    if facts.device == "cpu":
        return "vit_tiny", "the one that a CPU trains in hours"
    memory = f"{facts.memory / 1e9:.0f} GB of memory"
    if facts.num_images < FEW_IMAGES:
        return "vit_tiny", f"fewer than {FEW_IMAGES:,} images"
    if facts.memory < SMALL_MEMORY:
        return "vit_tiny", memory
    if facts.num_images >= MANY_IMAGES and facts.memory >= BASE_MEMORY:
        return "vit_base", f"{MANY_IMAGES:,} images or more, and {memory}"
    if facts.num_images >= MANY_IMAGES:
        return "vit_small", f"{memory}; ViT-B takes {BASE_MEMORY / 1e9:.0f}"
    return "vit_small", f"the paper's smaller one, for fewer than {MANY_IMAGES:,} images"


def choose_img_size(facts: Facts) -> tuple[int, str]:
    """Returns the side of the crop: a multiple of 32 that the images fill, 224 at most (128 on a CPU)."""
    largest = LARGEST_CROP_CPU if facts.device == "cpu" else LARGEST_CROP
    side = min(largest, max(SMALLEST_CROP, facts.short_side // CROP_STEP * CROP_STEP))
    shown = f"images' shorter side is {facts.short_side} px"
    if facts.short_side < SMALLEST_CROP:
        return side, f"{shown}: enlarged, a crop has 16 patches at least"
    return side, f"{shown}; {largest} at most{' on a CPU' if facts.device == 'cpu' else ', as the paper'}"


def choose_batch_size(facts: Facts) -> tuple[int, str]:
    """Returns the largest power of two with a few steps in every epoch, lowered to a multiple of the processes."""
    largest, why = (BATCH_SIZE_CPU, "a CPU's") if facts.device == "cpu" else (BATCH_SIZE, "the paper's")
    by_images = max(2, facts.num_images // STEPS_PER_EPOCH)
    if by_images < largest:
        largest, why = by_images, f"{STEPS_PER_EPOCH} steps an epoch or more"
    size = 1 << (largest.bit_length() - 1)
    return max(size - size % facts.processes, facts.processes), why


def choose_mask(facts: Facts) -> Derived:
    """Returns how patches are split, and how strong the augmentation is."""
    tiny = facts.num_images < TINY_SET
    why = f"{'fewer than ' if tiny else ''}{TINY_SET:,} images{'' if tiny else ' or more'}"
    values = ("uniform", 0.75, True) if tiny else ("block", 0.5, False)
    names = ("mask", "mask_ratio", "strong_augment")
    return {name: (value, f"the paper's for {why}") for name, value in zip(names, values, strict=True)}


def choose_vocab_size(num_images: int, num_patches: int, tokenizer: str) -> tuple[int, str]:
    """Returns V, a power of two: 8192 where there are patches enough.

    Args:
        num_images: each gives one word at most with `random_patches`.
        num_patches: of one crop.
        tokenizer: of the recipe.
    """
    patches = num_images * num_patches
    most = max(SMALLEST_VOCAB, patches // PATCHES_PER_WORD)
    if tokenizer == "random_patches":
        most = min(most, num_images)
    if tokenizer == "kmeans" and num_images < FEW_IMAGES:  # of more, whoever asks for it wants the paper's
        most = min(most, KMEANS_VOCAB)
    most = max(1, min(VOCAB_SIZE, patches, most))
    return 1 << (most.bit_length() - 1), f"{patches:,} patches in one crop of every image"


def derive(facts: Facts, given: dict[str, Any]) -> Derived:
    """Returns all values but the length and what depends on it; what is given counts for the others, and is left out.

    Args:
        facts: of images and machine.
        given: recipe values of the command line.

    Raises:
        ValueError: a single image.
    """
    if facts.num_images < 2:
        raise UserError(
            f"--recipe {OWN}: {facts.num_images} image is too few: an image is matched against others; give at least "
            "2, and some hundreds for a result of use"
        )
    method = given.get("method", RECIPES[OWN][1].method)
    found: Derived = {"model": choose_model(facts), "img_size": choose_img_size(facts)}
    found["batch_size"] = choose_batch_size(facts)
    found |= choose_mask(facts)
    if given.get("mask") == "block":
        found["mask_ratio"] = (0.5, "blocks are halves")
    elif "mask_ratio" in given:
        found["mask"] = ("uniform", "--mask-ratio is given") if given["mask_ratio"] != 0.5 else found["mask"]
    by_kmeans = KMEANS_FROM <= facts.num_images < FEW_IMAGES
    tokenizer = given.get("tokenizer", SMALL.tokenizer if by_kmeans else RECIPES[OWN][1].tokenizer)
    if tokenizer != "dalle":
        patch_size = ENCODERS[str(given.get("model", found["model"][0]))]["patch_size"]
        side = given.get("img_size", found["img_size"][0]) // patch_size
        found["vocab_size"] = choose_vocab_size(facts.num_images, side * side, tokenizer)
    if facts.num_images < FEW_IMAGES:
        few = f"fewer than {FEW_IMAGES:,} images"
        if tokenizer == SMALL.tokenizer:
            found["tokenizer"] = (tokenizer, f"{few}: of a random projection one vector may cover most patches")
        if given.get("match_weight") != 0 and given.get("inpaint_weight") != 0:
            for name in ("match_weight", "branch_jitter"):
                found[name] = (getattr(SMALL, name), f"{few}: else matching goes by colours, at inpainting's cost")
        found["qk_limit"] = (SMALL.qk_limit, f"{few}: attention must not collapse")
    if method == "dino" and facts.num_images < TINY_SET:
        found["dino_outputs"] = (DINO_OUTPUTS_TINY, f"fewer than {TINY_SET:,} images")
    return used(found, given)


def used(found: Derived, given: dict[str, Any]) -> Derived:
    """Returns what has an effect beside what is given, is not the method's own, and is not given."""
    switches = {name: value for name, value in given.items() if name in ("method", "inpaint_weight", "match_weight")}
    recipe = RECIPES[OWN][1].override(switches)
    without = {*given, *recipe.idle, *METHOD_VALUES.get(recipe.method, {})}
    return {name: entry for name, entry in found.items() if name not in without}


def choose_accumulate(
    recipe: Recipe, processes: int, fixed_bytes: float, bytes_per_image: float, memory: int
) -> tuple[int, str]:
    """Returns the micro-batches of a step that fit into the memory, as few as there can be.

    Args:
        recipe: with the batch size.
        processes: that share it.
        fixed_bytes: weights, gradients and the optimizer's state.
        bytes_per_image: what the backward pass needs of one image.
        memory: bytes that one process may use.

    Raises:
        ValueError: not one image fits.
    """
    local = recipe.batch_size // processes
    for parts in range(1, local + 1):
        if local % parts == 0 and fixed_bytes + local // parts * bytes_per_image <= MEMORY_SHARE * memory:
            if parts == 1:
                return 1, "the batch fits into the memory"
            if recipe.match_weight == 0 or recipe.method != "splitmask":
                return parts, f"{local // parts} images at a time fit into the memory"
            if recipe.grad_cache:
                kept = f"all {recipe.batch_size} stay negatives, for one more forward pass"
            else:
                kept = f"matching loses negatives: {recipe.batch_size // parts} in place of {recipe.batch_size}"
            return parts, f"{local // parts} images at a time fit into the memory; {kept}"
    needed = (fixed_bytes + bytes_per_image) / 1e9
    raise UserError(
        f"--model {recipe.model} with --img-size {recipe.img_size} takes about {needed:.1f} GB for a single image, and "
        f"{MEMORY_SHARE * memory / 1e9:.1f} GB can be used: use a smaller --model or --img-size"
    )


def choose_smaller_batch(recipe: Recipe, processes: int, step_seconds: float, hours: float | None) -> tuple[int, str]:
    """Returns the batch size, halved as long as the hours allow too few steps of it.

    Args:
        recipe: with the batch size that fits.
        processes: of the run.
        step_seconds: measured; goes by the images.
        hours: as of `choose_steps`.
    """
    size, hours = recipe.batch_size, HOURS if hours is None else hours
    parts = processes * recipe.accumulate
    while size >= 2 * SMALLEST_BATCH and size % (2 * parts) == 0 and _allowed(hours, step_seconds) < SMALLEST_STEPS:
        size, step_seconds = size // 2, step_seconds / 2
    return size, f"halved until --hours {hours:g} has room for {SMALLEST_STEPS} steps"


def _allowed(hours: float, step_seconds: float) -> int:
    return int(TRAINING_SHARE * hours * 3600 / step_seconds)


def choose_steps(num_images: int, batch_size: int, step_seconds: float, hours: float | None) -> tuple[int, str]:
    """Returns the optimizer steps: the paper's number of crops, 5,000 epochs at most, and what the hours allow.

    Raises:
        ValueError: the hours allow too few.
    """
    epochs = min(PAPER_CROPS / num_images, LARGEST_EPOCHS)
    wanted = max(1, round(epochs * num_images / batch_size))
    why = "the paper's 384 million crops" if epochs < LARGEST_EPOCHS else f"the paper's {LARGEST_EPOCHS:,} epochs"
    return bounded(wanted, why, batch_size, step_seconds, HOURS if hours is None else hours, hours is not None)


def bounded(
    wanted: int, why: str, batch_size: int, step_seconds: float, hours: float, is_given: bool = True
) -> tuple[int, str]:
    """Returns how many of the steps the hours allow.

    Args:
        wanted: steps without a bound.
        why: where they come from.
        batch_size: for the message.
        step_seconds: measured.
        hours: of the bound.
        is_given: whether by the user.

    Raises:
        ValueError: fewer than SMALLEST_STEPS.
    """
    allowed = _allowed(hours, step_seconds)
    if allowed >= wanted:
        return wanted, why
    if allowed < SMALLEST_STEPS:
        needed = SMALLEST_STEPS * step_seconds / TRAINING_SHARE / 3600
        raise UserError(
            f"--hours {hours:g} has room for {allowed} steps of {batch_size} images ({step_seconds:.2g} s each), and "
            f"fewer than {SMALLEST_STEPS} teach nothing: use --hours {needed + 5e-4:.3f} or more, or a smaller "
            "--batch-size"
        )
    room = f"--hours {hours:g}" if is_given else f"an afternoon: {hours:g} hours (--hours H)"
    return allowed, f"{room}; {why} would be {wanted:,} steps"


def choose_base_lr(batch_size: int) -> tuple[float, str]:
    """Returns the base lr: a power of the batch through the study's at 64 images and the paper's at 2048."""
    if batch_size >= REFERENCE_BATCH:
        return PAPER.base_lr, f"the paper's for {REFERENCE_BATCH:,} images"
    exponent = math.log(SMALL_BATCH_BASE_LR / PAPER.base_lr, REFERENCE_BATCH / SMALL_BATCH)
    base_lr = PAPER.base_lr * (REFERENCE_BATCH / batch_size) ** exponent
    why = f"by the batch: the study's at {SMALL_BATCH}, the paper's at {REFERENCE_BATCH:,}"
    return float(f"{base_lr:.2g}"), why


def choose_for_length(steps: int, crop_scale_max: float = 1.0) -> Derived:
    """Returns warm-up and the like of a run by its steps: those of short runs, or the paper's.

    Args:
        crop_scale_max: which the smallest crop may not exceed.
    """
    if steps < SHORT_RUN:
        short = SHORT | {"crop_scale": min(SHORT["crop_scale"], crop_scale_max)}
        return {name: (value, f"fewer than {SHORT_RUN:,} steps") for name, value in short.items()}
    return {name: (getattr(PAPER, name), f"{SHORT_RUN:,} steps or more: the paper's") for name in SHORT}
