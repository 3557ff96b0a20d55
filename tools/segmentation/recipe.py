"""Every value of a segmentation run: the config file, what the command line gives, and what an earlier run recorded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.training.options import PRECISIONS
from pretrain.training.schedule import warmup_poly
from splitmask_backbones.errors import UserError, check_choice
from tools.segmentation.config import check_config, gives_lr, load_config, override, scale_lr

OPTIONS = ("steps", "batch_size", "img_size", "seed", "labels")
"""Config values that are options under the same name."""

FREE = ("save_every", "log_every", "eval_every", "visualizer")
"""Config values that do not change the weights of the finished run."""

OF_DATA = ("classes", "palette", "reduce_zero_label")


@dataclass(frozen=True)
class SegRecipe:
    """A config with what the skeleton and the training loop read of it.

    Attributes:
        config: of `load_config`, with everything that was given put in.
        precision: "32" or "bf16".
        free: what a resumed or used run recorded beside its values.
    """

    config: dict[str, Any]
    precision: str = "32"
    free: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> SegRecipe:
        """Returns the recipe of a config file; errors as of `load_config`."""
        return cls(load_config(path))

    @classmethod
    def recorded(cls, record: dict[str, Any]) -> SegRecipe:
        """Returns the recipe of the run that a config.json is of."""
        values, free = record["values"], record["free"]
        config = with_tuples(record["recipe_values"], free["tuples"])
        config |= {name: values[name] for name in OPTIONS} | {name: free[name] for name in FREE}
        config |= {"use_tta": values["tta"], **dict.fromkeys(OF_DATA)}
        config["optim_wrapper"]["optimizer"]["lr"] = values["lr"]
        return cls(config, values["precision"], free)

    def override(self, given: dict[str, Any]) -> SegRecipe:
        """Returns the recipe with what the command line gives.

        Args:
            given: `overrides` (`key=value` pairs), and options by name (None where one is omitted): those of OPTIONS,
                `save_every`, `log_every`, `lr`, `precision`, `tta`. Another batch_size scales the lr unless one is
                given.

        Raises:
            ValueError: an unknown key, or a value that cannot be trained with.
        """
        config, pairs = copy.deepcopy(self.config), given.get("overrides") or []
        batch_size = config["batch_size"]
        override(config, pairs)
        for name in (*OPTIONS, "save_every", "log_every"):
            if given.get(name) is not None:
                config[name] = given[name]
        if given.get("lr") is not None:
            config["optim_wrapper"]["optimizer"]["lr"] = given["lr"]
        elif not gives_lr(pairs) and isinstance(config["batch_size"], int):
            scale_lr(config, batch_size)
        config["use_tta"] = config["use_tta"] or bool(given.get("tta"))
        precision = given.get("precision") or self.precision
        check_choice("precision", precision, PRECISIONS, "--precision")
        check_config(config)
        return replace(self, config=config, precision=precision)

    def values(self) -> dict[str, Any]:
        """Returns the entries of config.json: what has an option, and the rest of the config."""
        config = copy.deepcopy(self.config)
        values = {name: config.pop(name) for name in OPTIONS}
        values |= {"lr": config["optim_wrapper"]["optimizer"].pop("lr"), "precision": self.precision}
        values["tta"] = config.pop("use_tta")
        for name in (*FREE, *OF_DATA):
            config.pop(name)
        config["model"]["backbone"].pop("init_cfg", None)
        return {"values": values, "recipe_values": config}

    def __getattr__(self, name: str) -> Any:
        """Returns a value of the config: `batch_size`, `seed`, `accumulate`, `ema`, `eval_every`, ..."""
        if name.startswith("_") or name not in self.config:
            raise AttributeError(name)
        return self.config[name]

    @property
    def lr(self) -> float:
        """Peak lr of the last layer."""
        return self.config["optim_wrapper"]["optimizer"]["lr"]

    @property
    def clip_grad(self) -> float | None:
        """Largest gradient norm.

        Raises:
            ValueError: another kind of clipping.
        """
        clip = self.config["optim_wrapper"].get("clip_grad") or {}
        if set(clip) - {"max_norm"}:
            raise UserError(f"optim_wrapper.clip_grad={clip} must hold max_norm alone")
        return clip.get("max_norm")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps of the whole run."""
        return self.config["steps"]

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Returns the factor on the peak lr at a step (0-based) of a run of `total_steps`."""
        schedule = self.config["schedule"]
        return warmup_poly(step, total_steps, round(schedule["warmup_fraction"] * total_steps), schedule["power"])


def tuple_keys(value: Any, prefix: str = "") -> list[str]:
    """Returns the dotted keys of a config's tuples, which JSON makes lists of."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    own = [prefix[:-1]] if isinstance(value, tuple) else []
    nested = [(name, item) for name, item in items if isinstance(item, dict | list | tuple)]
    return own + [key for name, item in nested for key in tuple_keys(item, f"{prefix}{name}.")]


def with_tuples(value: Any, keys: Sequence[str], prefix: str = "") -> Any:
    """Returns a config from JSON with its tuples again: mmcv's transforms take some of them as no list.

    Args:
        keys: of `tuple_keys`.
    """
    if isinstance(value, dict):
        return {name: with_tuples(item, keys, f"{prefix}{name}.") for name, item in value.items()}
    if isinstance(value, list):
        items = [with_tuples(item, keys, f"{prefix}{number}.") for number, item in enumerate(value)]
        return tuple(items) if prefix[:-1] in keys else items
    return value
