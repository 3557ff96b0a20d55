"""The model of a run that was trained, from the run's config.json and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pretrain.training.distributed import ending_together, gather
from splitmask_backbones.errors import UserError
from tools.finetuning.model_files import find_weights, load_strictly
from tools.finetuning.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def recorded(task: Task, config: dict[str, Any]) -> Any:
    """Returns the values of the run that a config.json is of.

    Raises:
        ValueError: it does not hold them.
    """
    with whole_config(task.options.output, task.command):
        return task.recorded(config)


@contextmanager
def whole_config(folder: Path, command: str) -> Iterator[None]:
    """Raises ValueError where what is read in this context is missing in the config.json of a tool's run."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise UserError(
            f"config.json in {folder} does not hold what a run of tools/{command}.py records "
            f"({type(error).__name__}: {error}): it was edited, or made by another version: train anew"
        ) from None


def use_run(task: Task, config: dict[str, Any]) -> nn.Module:
    """Returns the model of the run that a config.json is of, without its weights; the task then is of that run.

    Raises:
        ValueError: config.json is of another tool, or does not hold what it records.
    """
    if config.get("command") != task.command:
        raise UserError(f"--output {task.options.output} holds no run of tools/{task.command}.py: choose its folder")
    task.previous = config
    task.recipe = recorded(task, config).override(task.given)
    with whole_config(task.options.output, task.command):
        encoder, _ = config["encoder"], config["data"]  # the task reads the classes there
    return task.build(None, encoder)


def load_newest(task: Task, model: nn.Module, folder: Path, fabric: Fabric) -> str:
    """Puts the newest (or best) weights of the run into the model, on the device; returns what they are called.

    To be called in all processes.

    Raises:
        ValueError: there are none, or they are damaged or another model's, or not the same in all processes.
    """
    source, tensors = ending_together(lambda: find_weights(folder, f"{task.noun}.safetensors", task.options.best))
    if len(others := sorted(set(gather([source])))) > 1:
        raise UserError(
            f"the processes find different weights ({', '.join(others)}): wait until all see the same files"
        )
    load_strictly(model, tensors, source, folder, task.remedy)
    fabric.to_device(model)
    return source
