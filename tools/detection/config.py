"""The recipe of a run: a config file, then `key=value` pairs, then options. Free of torch."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from det_configs.common.recipe import FIELDS, DetRecipe, check_field, parse_value
from splitmask_backbones.errors import UserError, nearest
from tools.finetuning.config_file import config_file, config_names

CONFIG_DIR = Path(__file__).resolve().parents[2] / "det_configs"
# Options that are recipe values under the same name, so that all trainers take them alike.
OPTIONS = ("steps", "epochs", "batch_size", "img_size", "lr", "seed", "precision", "labels")


def load_config(path: str) -> DetRecipe:
    """Returns the `recipe` that a config file defines.

    Args:
        path: as of `config_file`.

    Raises:
        ValueError: no such file (with the nearest name), it fails, or it defines no `DetRecipe`.
    """
    file, names = config_file(path, CONFIG_DIR), config_names(CONFIG_DIR)
    spec = importlib.util.spec_from_file_location(f"det_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path} is no Python file: {nearest(path, names)}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        hint = f": {nearest(unknown[1], FIELDS)}" if unknown else ""
        raise UserError(f"config {path}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"config {path} cannot be used ({type(error).__name__}: {error}): correct the file") from error
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, DetRecipe):
        raise UserError(f"config {path} defines no `recipe` of type DetRecipe: see {names[0]}")
    return recipe


def given_values(options: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Returns the recipe values of the command line; options win over `key=value` pairs.

    Args:
        options: parsed, by name; None where one is omitted.
        overrides: `key=value` pairs.

    Raises:
        ValueError: unknown key, a value of a wrong type, or a key given twice.
    """
    values: dict[str, Any] = {}
    for pair in overrides:
        name, text = (part.strip() for part in pair.split("=", 1))
        check_field(name)
        if name in values:
            raise UserError(f"{name} is given twice: give it once")
        values[name] = parse_value(name, text)
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in given and other not in given:
            values.pop(other, None)
    return values | given
