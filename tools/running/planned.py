"""What a command line asks for: the recipe values of a tool's run, by the tool's own parser. Free of torch."""

import dataclasses
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.own_recipe import OWN
from pretrain.recipes import Recipe, get_recipe
from pretrain.training.run_folder import flatten
from splitmask_backbones.errors import UserError
from tools import cli
from tools.classification.recipes import ClsRecipe
from tools.classification.recipes import get_recipe as get_cls_recipe
from tools.segmentation.recipe import SegRecipe


def parsed(tool: str, argv: Sequence[str]) -> Any:
    """Returns the options of a tool, parsed by the tool itself.

    Raises:
        ValueError: what the tool would say about an option.
    """
    return import_module(f"tools.{tool}").build_parser().parse_args([*argv, "--output", "-"])


def options_of(tool: str) -> set[str]:
    """Returns the options that a fine-tuning tool has."""
    return set(import_module(f"tools.{tool}").build_parser()._option_string_actions)


def config_of(tool: str, argv: Sequence[str]) -> str:
    """Returns what a command line of a fine-tuning tool names as its config, "" for a tool without; errors as above."""
    rest, _ = cli.take_overrides(import_module(f"tools.{tool}").build_parser(), list(argv))
    return getattr(parsed(tool, rest), "config", "")


def without_config(tool: str, argv: Sequence[str], config: str) -> list[str]:
    """Returns a command line without its config, which an option may have as its value too."""
    for place, text in enumerate(argv):
        rest = [*argv[:place], *argv[place + 1 :]]
        with suppress(UserError):
            if text == config and config_of(tool, [config, *rest]) == config:
                return rest
    return list(argv)  # a tool without one


def planned_recipe(argv: Sequence[str]) -> Recipe:
    """Returns the recipe of a pre-training; errors as of `parsed`."""
    args = parsed("pretrain", argv)
    return get_recipe(args.recipe).override(cli.given_values(args, Recipe))


def planned_detection(argv: Sequence[str]) -> DetRecipe:
    """Returns the recipe of a detector's training; errors as of `parsed`, and of its config."""
    from tools.detection.config import given_values, load_config
    from tools.train_det import build_parser

    rest, overrides = cli.take_overrides(build_parser(), list(argv))
    args = parsed("train_det", rest)
    return load_config(args.config).override(given_values(vars(args), overrides))


def planned_classification(argv: Sequence[str]) -> ClsRecipe:
    """Returns the recipe of a classifier's training; errors as of `parsed`."""
    args = parsed("train_cls", argv)
    return get_cls_recipe(args.recipe).override(cli.given_values(args, ClsRecipe))


def planned_segmentation(argv: Sequence[str]) -> SegRecipe:
    """Returns the recipe of a segmentor's training; errors as of `parsed`, and of its config, which needs mmengine."""
    from tools.segmentation.config import config_path
    from tools.train_seg import GIVEN, parse_args

    args = parse_args([*argv, "--output", "-"])
    return SegRecipe.load(config_path(args.config)).override({name: getattr(args, name) for name in GIVEN})


def planned_values(tool: str, argv: Sequence[str]) -> dict[str, Any]:
    """Returns the values that a run is going to have.

    Args:
        tool: file in tools/; of one without a recipe, or with one that depends on the images, there are none.
        argv: its command line without --output.

    Returns:
        Values by the dotted name below `values` and `recipe_values` of config.json, as JSON holds them.

    Raises:
        ValueError: what the tool would say about an option or a config.
    """
    name = tool.removesuffix(".py")
    groups: list[dict[str, Any]] = []
    if name == "pretrain" and parsed(name, argv).recipe != OWN:
        groups = [dataclasses.asdict(planned_recipe(argv))]
    elif name == "train_det":
        groups = [dataclasses.asdict(planned_detection(argv))]
    elif name == "train_cls":
        groups = [dataclasses.asdict(planned_classification(argv))]
        groups[0].pop("model")  # of the encoder file, where there is one
    elif name == "train_seg":
        groups = [*planned_segmentation(argv).values().values()]
    # Through JSON, so that tuples and lists compare equal.
    return {key: value for group in groups for key, value in flatten(json.loads(json.dumps(group))).items()}
