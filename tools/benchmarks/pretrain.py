"""What limits pre-training on this machine: the step, the loader, both together, memory, the start; all in one run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.methods.build import build_sample
from pretrain.methods.qk_limit import EVERY
from pretrain.methods.splitmask import SplitMask, complement
from pretrain.recipes import Recipe
from pretrain.training.distributed import make_fabric
from splitmask_backbones.vit import gather_tokens
from tools.benchmarks import in_turns
from tools.benchmarks.loading import SOURCES, images_of, images_per_second, make_batches, trained_per_second
from tools.benchmarks.memory import free_memory, peak_of
from tools.benchmarks.starts import COCO, start_seconds
from tools.benchmarks.steps import BareStep, Batch, make_steps, random_batch
from tools.common.plots import print_table

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
"""Sides of the square matrices that are multiplied."""


def benchmark_pretraining(
    recipe: Recipe,
    num_steps: int,
    device: str,
    workers: int,
    data: str | None = None,
    num_images: int = 64,
    num_starts: int = 0,
) -> None:
    """Prints FLOPs by part, and tables of the bare step, the loader, both together and the start.

    Args:
        recipe: of SplitMask; its own step is measured, with its weights of the losses and its branch jitter.
        num_steps: that are measured, each.
        device: of `make_fabric`.
        workers: data processes.
        data: images as `--data` of tools/pretrain.py; None for synthetic ones of COCO's size.
        num_images: of them that are read, at least a batch.
        num_starts: tiny images with which starts are measured; 0 for none.
    """
    fabric = make_fabric(recipe.precision, device)
    method: Any = build_sample(recipe)  # with a random codebook: no data is needed
    batch = random_batch(recipe, method.encoder.grid_size)
    title = f"SplitMask, {recipe.encoder_title}, {recipe.img_size} px, batch {recipe.batch_size}"
    flops = flops_per_image(method, {name: value[:2] for name, value in batch.items()})  # on the CPU
    parts = {**flops, "total": sum(flops.values())}
    print_table(title, "", ("part", "GFLOPs per image"), [[name, f"{v / 1e9:.2f}"] for name, v in parts.items()])
    where = torch.cuda.get_device_name() if fabric.device.type == "cuda" else "cpu"
    print(f"device {where}, precision {recipe.precision}, threads {torch.get_num_threads()}, workers {workers}")
    steps, reasons = make_steps(method, recipe, fabric)
    bare, name = measure_steps(steps, reasons, parts["total"], fabric.to_device(batch), recipe, num_steps, fabric)
    step = steps[name]
    steps.clear()
    step.release()
    free_memory(fabric.device.type)
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        place = Path(folder)
        count = max(num_images, recipe.batch_size)
        measure_loading(step, bare, recipe, num_steps, workers, data, count, place, fabric)
        measure_starts(num_starts, place, workers, fabric)


def measure_steps(
    steps: dict[str, BareStep],
    reasons: dict[str, str],
    flops: float,
    batch: Batch,
    recipe: Recipe,
    num_steps: int,
    fabric: Fabric,
) -> tuple[float, str]:
    """Prints a table of bare steps; returns the images/s of the fastest, and its name."""
    device = fabric.device.type
    size, dtype = PRODUCT_SIZE[device], torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=fabric.device, dtype=dtype) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {f"product {i}": lambda: left @ right for i in range(4)}
    peaks, reasons = first_steps(steps, batch, reasons, device)
    calls |= {name: partial(step, batch) for name, step in steps.items()}
    seconds = {name: min(found) for name, found in in_turns(calls, num_steps, device).items()}
    # The best of each: on a shared machine everything slower measures the neighbours.
    rate = 2 * size**3 / min(found for name, found in seconds.items() if name.startswith("product"))
    first = next(iter(steps))
    rows = []
    for name in steps:
        speed = recipe.batch_size / seconds[name]
        share = f"{100 * flops * speed / rate:.0f} %"
        cells = [f"{1000 * seconds[name]:.1f}", f"{speed:.1f}", f"{seconds[first] / seconds[name]:.2f}", share]
        rows.append([name, *cells, f"{peaks[name] / 2**30:.2f}" if name in peaks else "-"])
    header = ("bare step", "ms", "images/s", "speed-up", "product", "peak GiB")
    caption = "product: share of the matrix-product rate; peak: what the first step adds to the weights"
    print_table("a batch that lies on the device", caption, header, rows)
    if not peaks:
        reasons = {**reasons, "peak memory": "this system does not tell"}
    elif len(peaks) < len(steps):
        reasons = {**reasons, "peak memory of compiled blocks": "on a CPU the compiler's own would count"}
    for name, reason in reasons.items():
        print(f"not measured: {name} ({reason})")
    print(f"matrix product {size} x {size}: {rate / 1e9:.0f} GFLOP/s")
    print(f"share of the matrix-product rate: {rows[0][4]}")
    fastest = min(steps, key=lambda name: seconds[name])
    return recipe.batch_size / seconds[fastest], fastest


def first_steps(
    steps: dict[str, Any], batch: Batch, reasons: dict[str, str], device: str
) -> tuple[dict[str, int], dict[str, str]]:
    """Makes the first step of each way, and takes away those that fail or find no room beside the ones before.

    Args:
        steps: loses them.
        batch: on the device.
        reasons: why ways are missing.
        device: "cuda" or "cpu".

    Returns:
        The bytes of each step's peak where they tell something of it, and the reasons with those.

    Raises:
        Exception: what the first way raises, with which the others are compared.
    """
    peaks: dict[str, int] = {}
    # On a card twice: a graph holds memory that the ways before it had found free.
    for name in [*steps, *(steps if device == "cuda" else ())]:
        if name not in steps:
            continue
        try:
            free_memory(device)
            peak = peak_of(partial(steps[name], batch), device)
            if peak is not None and (device == "cuda" or "compiled" not in name):
                peaks.setdefault(name, peak)
        except Exception as error:  # what a version of torch cannot do is a row of the table
            if name == next(iter(steps)):
                raise
            del steps[name]
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if isinstance(error, torch.OutOfMemoryError):
                reason = "no memory beside the others: measure with a smaller --batch-size"
            reasons = {**reasons, name: reason}
        free_memory(device)
    return peaks, reasons


def measure_loading(
    step: BareStep,
    bare: float,
    recipe: Recipe,
    num_steps: int,
    workers: int,
    data: str | None,
    num_images: int,
    place: Path,
    fabric: Fabric,
) -> None:
    """Prints a table of the loader alone, and of runs with the fastest step."""
    from_files, cached = images_of(data, num_images, place)
    warm = max(2, workers)
    count = max(num_steps, 2 * workers)  # two of each worker's: they begin at the same time
    if recipe.qk_limit is not None:
        count = math.ceil(count / EVERY) * EVERY
    rows, first = [], 0.0
    for name, source in SOURCES.items():
        images = cached if source.is_cached else from_files
        parts = recipe.accumulate
        batches = make_batches(source, recipe, images, fabric, workers, warm + count)
        alone = images_per_second(batches, lambda batch: None, warm * parts, count * parts, fabric)
        whole = trained_per_second(step, source, images, fabric, workers, warm, count)
        first = first or alone
        cells = [f"{alone:.1f}", f"{alone / max(1, workers):.1f}", f"{alone / first:.2f}", f"{whole:.1f}"]
        rows.append([name, *cells, f"{whole / bare:.2f}"])
    header = ("images from", "loader", "a worker", "speed-up", "a run", "of it")
    caption = "the loader makes the crops on the device as well; a run: the loop of tools/pretrain.py with the fastest "
    caption += "step; of it: share of that bare step's images/s"
    print_table(f"images/s with {workers} workers, {len(from_files)} images", caption, header, rows)


def measure_starts(count: int, place: Path, workers: int, fabric: Fabric) -> None:
    """Prints a table of the seconds before the first step, and what they are for COCO."""
    if not count:
        print("not measured: starts of a run (--start-images 20000 writes and checks so many tiny files)")
        return
    found = start_seconds(count, place, workers, fabric)
    rows = [[name, f"{seconds:.1f}", f"{seconds * COCO / count:.1f}"] for name, seconds in found.items()]
    print_table("until the images are known", "", ("start", f"s, {count} images", f"s, {COCO} images"), rows)


@torch.no_grad()
def flops_per_image(method: SplitMask, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns operations per image of a training step by part: encoder, decoder, head, tokenizer.

    A multiply-add counts as two. Matrix products and attention are counted in the forward pass by torch's counter;
    the backward pass of encoder, decoder and head takes twice that. The tokenizer has no backward pass.

    Args:
        method: in any mode; nothing of it changes.
        batch: as `SplitMask.forward` takes it.
    """
    num_images = len(batch["image"])
    image = method.normalize(batch["image"])
    ids = torch.cat([batch["ids_a"], batch["ids_b"]])
    counts: dict[str, float] = {}

    def count(name: str, factor: int, part: object) -> object:
        # As plain matrix products: not every version of torch counts the fused attention of every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = part()  # type: ignore[operator]
        counts[name] = factor * counter.get_total_flops() / num_images
        return result

    tokens = count("encoder", 3, lambda: method.encoder(torch.cat([image, image]), ids))
    decoded = count("decoder", 3, lambda: method.decoder(tokens, ids))
    if method.head is not None and method.tokenizer is not None:
        hidden = gather_tokens(decoded, complement(ids, decoded.shape[1]))  # type: ignore[attr-defined, arg-type]
        count("head", 3, lambda: method.head(hidden))  # type: ignore[misc]
        count("tokenizer", 1, lambda: method.tokenizer.tokens_of(image, method.encoder.patch_size))  # type: ignore[union-attr]
    return counts
