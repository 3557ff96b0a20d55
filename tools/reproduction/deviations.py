"""In what a run differs from the recipe of its table row, in words."""

import dataclasses
import json
from typing import Any

from pretrain.own_recipe import OWN
from pretrain.recipes import RECIPES, REFERENCE_BATCH
from pretrain.training.run_folder import flatten
from splitmask_backbones.errors import UserError
from tools.classification.probe_recipe import ProbeRecipe
from tools.classification.recipes import get_recipe
from tools.detection.config import load_config
from tools.reproduction.runs import IDENTITY, Run
from tools.reproduction.sets import SETS

LENGTH = ("epochs", "steps")
APART = ("lr", "seed", "precision", *LENGTH)
"""Values that are compared by a rule of their own, or not at all."""
PROBE_SIZE = 224


def deviations(run: Run, data: str | None = None) -> list[str]:
    """Returns what differs between a run and its recipe, pre-training included; an empty list for a faithful run.

    With the name of a data set, the number of its images counts too.
    """
    found = _of_pretraining(run.pretraining)
    if run.tool == "pretrain":
        return found
    found = [*(f"pre-training: {text}" for text in found), *FINETUNING[run.tool](run)]
    train = run.report.get("train")
    images = train.get("images_used", train.get("images")) if isinstance(train, dict) else None
    if data is not None and isinstance(images, int):
        found += _size(images, SETS[data].num_images)
    if run.load_complete is False or run.results.get("warning"):
        found.append("the encoder's weights were not whole")
    return found


def notes(run: Run) -> list[str]:
    """Returns what is worth knowing and no deviation: the precision, and for hours the processes."""
    precision = str(run.values.get("precision", "32"))
    found = [] if precision == "32" else [f"precision {precision}"]
    if run.tool == "pretrain":
        found.append(f"processes: {run.config.get('free', {}).get('processes', 'unknown')}")
    return found


def _size(images: int, expected: int) -> list[str]:
    return [f"{images:,} training images in place of {expected:,}"] if images != expected else []


def _length(got: dict[str, Any], want: dict[str, Any]) -> list[str]:
    """Compares epochs or steps; a config knows only one of them."""
    mine, its = ([(name, given[name]) for name in LENGTH if given.get(name)] for given in (got, want))
    if mine == its or not mine or not its:
        return []
    return [f"{mine[0][1]:,} {mine[0][0]} in place of {its[0][1]:,} {its[0][0]}"]


def _values(got: dict[str, Any], want: dict[str, Any], apart: tuple[str, ...]) -> list[str]:
    """Compares all other values, those that only one side knows left out."""
    names = [name for name in want if name in got and name not in apart]
    return [f"{name} {_shown(got[name])} in place of {_shown(want[name])}" for name in names if got[name] != want[name]]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _lr(got: dict[str, Any], want: float, batch_size: int) -> list[str]:
    """Compares the peak lr with what `want`, the lr of `batch_size`, comes to at the run's own batch: it is linear."""
    if got.get("lr") is None:
        return []
    scaled = want * got["batch_size"] / batch_size
    return [] if abs(got["lr"] - scaled) <= 1e-6 * scaled else [f"lr {got['lr']:g} in place of {scaled:g}"]


def _compare(got: dict[str, Any], want: dict[str, Any], apart: tuple[str, ...] = APART) -> list[str]:
    """Compares length, values and peak lr with the recipe's."""
    found = _length(got, want) + _values(got, want, apart)
    return found + (_lr(got, want["lr"], want["batch_size"]) if "lr" in want else [])


def _of_pretraining(config: dict[str, Any]) -> list[str]:
    if config.get("command") == "train_cls":
        found = _of_classification(config["values"], str(config["recipe"]))
        return found + (["not from random init"] if config.get("--weights", "none") != "none" else [])
    if config.get("command") != "pretrain" or config.get("recipe") not in RECIPES:
        return []
    name, got = str(config["recipe"]), config["values"]
    if name == OWN:  # no row of the paper: its values are derived from the images
        return []
    # What makes it another row may bring values of its own along, and naming a model takes the recipe's sizes away.
    own = RECIPES[name][1]
    rows = {key: got[key] for key in ("method", "model", *IDENTITY) if key in got and got[key] != getattr(own, key)}
    want = dataclasses.asdict(own.override(rows))
    found = _length(got, want) + _values(got, want, (*APART, *IDENTITY, "model", "method"))
    found += _lr(got, want["base_lr"], REFERENCE_BATCH)
    if config.get("--holdout"):
        found.append(f"{config['--holdout']:.0%} of the images kept out")
    data = config.get("data", {})
    images = data.get("num_files")
    if name in SETS and isinstance(images, int):
        found += _size(images - len(data.get("unreadable", [])), SETS[name].num_images)
    return found


def _of_detection(run: Run) -> list[str]:
    got = {**run.values, **run.config.get("recipe_values", {})}
    try:
        want = dataclasses.asdict(load_config(f"det_configs/{run.setting}.py"))
    except UserError:
        want = run.config.get("config_values", {})
    # Through JSON, tuples have become lists.
    found = _compare(got, {key: list(value) if isinstance(value, tuple) else value for key, value in want.items()})
    engine = run.config.get("--engine", "detectron2")
    return found + ([f"engine {engine} in place of detectron2"] if engine != "detectron2" else [])


def _of_segmentation(run: Run) -> list[str]:
    from tools.segmentation import config as seg_config

    try:
        config = seg_config.load_config(seg_config.config_path(run.setting))
    except ModuleNotFoundError as error:
        return [f"not compared with {run.setting}, because {error.name} is not installed"]
    except UserError:
        return [f"not compared with its config: {run.setting}, of {run.folder.name}, is not in seg_configs/"]
    want = {name: config.pop(name) for name in ("steps", "batch_size", "img_size", "seed")}
    want["lr"] = config["optim_wrapper"]["optimizer"].pop("lr")
    got = run.values
    found = _compare(got, want)
    if got.get("tta", False) != config.pop("use_tta"):
        found.append("tested at several scales" if got.get("tta") else "tested at one scale")
    theirs, mine = flatten(json.loads(json.dumps(config))), flatten(run.config.get("recipe_values", {}))
    theirs, mine = ({key: value for key, value in side.items() if value is not None} for side in (theirs, mine))
    # What the config has got since the run is no deviation of it.
    own = flatten(run.config.get("config_values", {}))
    less = _only({key: value for key, value in theirs.items() if key in own}, mine)
    found += [f"{key} is not there" for key in less]
    return (
        found + _values(mine, theirs, ()) + [f"{key} is there, which the config has not" for key in _only(mine, theirs)]
    )


def _only(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Returns the dotted keys that one side has alone; of a whole branch that is missing, its own."""
    branches = {key[:end] for key in there for end in range(len(key)) if key[end] == "."} | {*there}
    alone = []
    for key in here:
        parts = key.split(".")
        prefixes = [".".join(parts[: count + 1]) for count in range(len(parts))]
        alone += [next(prefix for prefix in prefixes if prefix not in branches)] if key not in there else []
    return list(dict.fromkeys(alone))


def _of_classification(values: dict[str, Any], recipe: str) -> list[str]:
    return _compare(values, dataclasses.asdict(get_recipe(recipe)), (*APART, "model"))


def _of_probe(run: Run) -> list[str]:
    # Runs record the size that was used; the recipe leaves it to the encoder, which the paper reads at its own size.
    return _compare(run.values, dataclasses.asdict(ProbeRecipe()) | {"img_size": PROBE_SIZE}, (*APART, "model"))


FINETUNING = {
    "train_det": _of_detection,
    "train_seg": _of_segmentation,
    "train_cls": lambda run: _of_classification(run.values, run.setting),
    "probe": _of_probe,
}
"""What compares a run with its recipe, by tool."""
