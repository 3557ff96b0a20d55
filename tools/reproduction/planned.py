"""What the command line of a tool stands for before it runs: its recipe, its steps, its cost. Free of torch."""

from importlib import import_module
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.recipes import Recipe, get_recipe
from tools import cli
from tools.classification.probe_recipe import ProbeRecipe
from tools.classification.recipes import ClsRecipe
from tools.classification.recipes import get_recipe as get_cls_recipe
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
    from tools.detection.config import given_values, load_config
    from tools.train_det import build_parser

    rest, overrides = cli.take_overrides(build_parser(), argv)
    args = _parsed("train_det", rest)
    return load_config(args.config).override(given_values(vars(args), overrides))


def _planned_classification(argv: list[str]) -> ClsRecipe:
    args = _parsed("train_cls", argv)
    return get_cls_recipe(args.recipe).override(cli.given_values(args, ClsRecipe))


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
    num_images, operations = SETS[data].num_images, cost.finetuning_operations(tool, model)
    if tool == "probe":
        ProbeRecipe().override(cli.given_values(_parsed("probe", argv), ProbeRecipe))
        return {"operations": operations * num_images, "scratch": cost.probe_bytes(model, num_images)}
    if tool == "train_seg":
        args = import_module("tools.train_seg").parse_args([*argv, "--output", "-"])
        steps, batch = args.steps or SEG_STEPS, args.batch_size or SEG_BATCH
    else:
        recipe = planned_detection(argv) if tool == "train_det" else _planned_classification(argv)
        batch = recipe.batch_size
        steps = recipe.steps or (recipe.epochs or 0) * (num_images // batch)
    disk = cost.training_bytes(cost.encoder_parameters(model) + cost.HEAD_PARAMETERS[tool])
    return {"num_steps": steps, "operations": operations * steps * batch, "disk": disk}
