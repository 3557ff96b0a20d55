"""What a pre-training takes on this machine: a few steps of real batches, measured. Leaves the run as it would be."""

from __future__ import annotations

import dataclasses
import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import default_collate

from pretrain.data.sources import ImageList
from pretrain.data.views import Views
from pretrain.methods.build import build_optimizer, build_sample, build_views
from pretrain.own_recipe import MEMORY_SHARE
from pretrain.recipes import Recipe
from pretrain.training.compilation import compile_blocks
from pretrain.training.evenly import evenly
from pretrain.training.measuring import memory_of_step, now, time_steps
from pretrain.training.options import ON
from splitmask_backbones.errors import UserError
from tools.pretraining.train import grad_cached

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tools.pretraining.options import PretrainOptions

MEASURED_FROM = 60
"""Steps of a run from which on it is worth it: three steps are 5 % of them."""
NUM_ITEMS = 16
ITEM_SECONDS = 2.0
"""Images that are read for the batches, at most, and for how long."""
NUM_ON_CPU = 16
"""Images of a step that is timed on a CPU, whose time goes by them; a GPU gets the whole micro-batch."""


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one process.

    Attributes:
        step_seconds: of an optimizer step, loading included as far as it is waited for.
        item_seconds: of one core, to read and crop an image.
        fixed_bytes: of a step, whatever its batch.
        bytes_per_image: of a micro-batch.
        item_bytes: of one image on its way from a data worker.
        checkpoint_bytes: of a checkpoint.
    """

    step_seconds: float
    item_seconds: float
    fixed_bytes: float
    bytes_per_image: float
    item_bytes: int
    checkpoint_bytes: int

    def memory(self, recipe: Recipe, processes: int) -> float:
        """Returns the bytes of a step of the recipe."""
        return needed_memory(recipe, processes, self.fixed_bytes, self.bytes_per_image)


def needed_memory(recipe: Recipe, processes: int, fixed: float, per_image: float) -> float:
    """Returns the bytes of a step of the recipe, from those of any step and those of an image of a micro-batch."""
    micro = recipe.batch_size // (processes * recipe.accumulate)
    return (fixed + micro * per_image) / MEMORY_SHARE


@contextmanager
def leaving_nothing(device: torch.device, compiled: bool) -> Iterator[None]:
    """Gives back what `measure` takes within: random numbers, compiled graphs, and the device's memory."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
    if compiled:  # else the run's own graphs would be those of shapes that vary, and a resume's would not
        torch._dynamo.reset()
    if devices:
        gc.collect()  # a compiled model holds itself, and so its part of the card
        torch.cuda.empty_cache()


def measure(
    recipe: Recipe,
    images: ImageList,
    options: PretrainOptions,
    fabric: Fabric,
    init: Path | None,
    split: Callable[[float, float], int],
) -> tuple[Recipe, Cost]:
    """Returns the recipe with the micro-batches that fit, and what it takes; to be called in all processes.

    Within `leaving_nothing`, so that the run begins as without it.

    Args:
        recipe: all values.
        images: of the run; unreadable ones are passed by.
        options: of the command line.
        fabric: device, precision, processes.
        init: as of `build_encoder`.
        split: from the fixed bytes and those per image to `accumulate`, or raises: the same in all processes.
    """
    views = build_views(recipe, images, recipe.encoder_sizes["patch_size"])
    items, item_seconds = _items(views)
    method = build_sample(recipe, options.tokenizer_weights, init).to(fabric.device).train()

    def batch_of(count: int) -> Any:
        return default_collate([items[number % len(items)] for number in range(count)])

    def forward(count: int) -> Any:
        with fabric.autocast():
            return method(fabric.to_device(batch_of(count)))

    fixed, per_image = fabric.broadcast(memory_of_step(method, forward, fabric.world_size))
    recipe = dataclasses.replace(recipe, accumulate=fabric.broadcast(split(fixed, per_image)))
    micro = recipe.batch_size // (fabric.world_size * recipe.accumulate)
    timed = micro if fabric.device.type == "cuda" else min(micro, NUM_ON_CPU)
    # Two at least: a single image has none to be matched against.
    timed = max(timed, min(2, recipe.batch_size))
    cached = grad_cached(recipe, method)
    if recipe.compile == ON:
        compile_blocks(method)
    optimizer = build_optimizer(method, recipe, fabric.device)
    seconds = time_steps(fabric, method, optimizer, batch_of(timed), cached, recipe.cuda_graph)
    seconds *= micro / timed * recipe.accumulate
    local = recipe.batch_size // fabric.world_size
    seconds = with_loading(seconds, local * item_seconds, options.workers, fabric.device.type)
    cost = Cost(
        step_seconds=seconds,
        item_seconds=item_seconds,
        fixed_bytes=fixed,
        bytes_per_image=per_image,
        item_bytes=len(pickle.dumps(items[0])),
        checkpoint_bytes=sum(t.nbytes for t in method.state_dict().values())
        + 2 * sum(p.nbytes for p in method.parameters() if p.requires_grad),
    )
    return fabric.broadcast((recipe, cost))


def with_loading(step: float, loading: float, workers: int, device: str) -> float:
    """Returns the seconds of a step with its images.

    Args:
        step: seconds of the computation.
        loading: seconds of one core for the images of the step.
        workers: data processes; 0 loads in between.
        device: on a CPU the workers take their time from the computation, beside a GPU they work at the same time.
    """
    if workers == 0:
        return step + loading
    if device == "cpu":
        return step + loading / torch.get_num_threads()
    return max(step, loading / workers)


def _items(views: Views) -> tuple[list[Any], float]:
    """Returns items of images spread over the list, and the seconds of one."""
    items: list[Any] = []
    reasons: list[str] = []
    start = now()
    places = evenly(len(views), NUM_ITEMS)
    for index in places:
        try:
            items.append(views[(0, index, 0)])
        except UserError as error:  # unreadable: the check of the images says so
            reasons.append(str(error))
            continue
        if now() - start > ITEM_SECONDS:
            break
    if not items:
        raise UserError(f"--data: none of the {len(places)} images looked at can be used, the first one: {reasons[0]}")
    return items, (now() - start) / len(items)
