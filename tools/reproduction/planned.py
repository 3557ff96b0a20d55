"""What the command line of a tool stands for before it runs: its recipe, its steps, its cost. Free of torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.recipes import Recipe, get_recipe
from tools import cli
from tools.classification import recipes as classification
from tools.classification.probe_recipe import ProbeRecipe
from tools.reproduction import cost
from tools.reproduction.sets import SETS

SEG_STEPS, SEG_BATCH = 160_000, 16  # the paper's; tools/train_seg.py's configs need mmseg to be read


def _parsed(tool: str, argv: list[str]) -> Any:
    """Returns the options of a tool, parsed by the tool itself.

    Raises:
        ValueError: what the tool would say about an option.
    """
    return import_module(f"tools.{tool}").build_parser().parse_args([*argv, "--output", "-"])


def planned_recipe(argv: list[str]) -> Recipe:
    """Returns the recipe of a pre-training."""
    args = _parsed("pretrain", argv)
    return get_recipe(args.recipe).override(cli.given_values(args, Recipe))


def planned_detection(argv: list[str]) -> DetRecipe:
    """Returns the recipe of a detector."""
    from tools.detection.config import given_values, load_config, take_overrides
    from tools.train_det import build_parser

    rest, overrides = take_overrides(build_parser(), argv)
    args = _parsed("train_det", rest)
    return load_config(args.config).override(given_values(vars(args), overrides))


def pretraining_cost(argv: list[str], data: str) -> dict[str, Any]:
    """Returns the values of a `Job` that say what a pre-training costs: recipe, num_steps, operations, disk.

    Raises:
        ValueError: what tools/pretrain.py would say about an option.
    """
    recipe = planned_recipe(argv)
    steps = recipe.total_steps(SETS[data].num_images // recipe.batch_size)
    operations = cost.pretraining_operations(recipe) * steps * recipe.batch_size
    return {"recipe": recipe, "num_steps": steps, "operations": operations, "disk": cost.pretraining_bytes(recipe)}


def finetuning_cost(tool: str, argv: list[str], model: str, data: str) -> dict[str, Any]:
    """Returns the values of a `Job` that say what a fine-tuning costs: num_steps, operations, disk, scratch.

    Args:
        tool: "train_det", "train_seg", "train_cls" or "probe".
        argv: of the tool, without --output.
        model: encoder.
        data: data set.

    Raises:
        ValueError: what the tool would say about an option.
    """
    num_images, parameters = SETS[data].num_images, cost.encoder_parameters(model)
    if tool == "probe":
        ProbeRecipe().override(cli.given_values(_parsed("probe", argv), ProbeRecipe))
        return {"operations": cost.probe_total(model, num_images), "scratch": cost.probe_bytes(model, num_images)}
    if tool == "train_det":
        detection = planned_detection(argv)
        steps, batch = detection.total_steps(num_images // detection.batch_size), detection.batch_size
        operations, parameters = cost.detection_total(model, steps * batch), parameters + cost.DET_PARAMETERS
    elif tool == "train_seg":
        args = import_module("tools.train_seg").parse_args([*argv, "--output", "-"])
        steps, batch = args.steps or SEG_STEPS, args.batch_size or SEG_BATCH
        operations, parameters = cost.segmentation_total(model, steps * batch), parameters + cost.SEG_PARAMETERS
    else:
        args = _parsed("train_cls", argv)
        recipe = classification.get_recipe(args.recipe).override(cli.given_values(args, classification.ClsRecipe))
        batch = recipe.batch_size
        steps = recipe.steps or (recipe.epochs or 0) * (num_images // batch)
        operations = cost.classification_total(model, steps * batch)
    return {"num_steps": steps, "operations": operations, "disk": cost.training_bytes(parameters)}
