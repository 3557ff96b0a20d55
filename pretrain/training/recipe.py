"""Recipes as frozen dataclasses whose every value has a help text, a type and a range. Free of torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from splitmask_backbones.errors import UserError, check_choice, nearest

ABOVE_ZERO, BELOW_ONE = 1e-12, 1 - 1e-12
"""The lowest value of a field that must be above zero, and the highest of one that must be below one."""


def value(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, choices: Any = None) -> Any:
    """Returns a dataclass field with its help, allowed range (inclusive) and choices (of each item in a tuple)."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def titled(model: str, embed_dim: int | None, depth: int | None) -> str:
    """Returns a model's name with the sizes of one's own, "vit_tiny (96 wide, 6 blocks)"."""
    own = [f"{embed_dim} wide"] if embed_dim is not None else []
    own += [f"{depth} blocks"] if depth is not None else []
    return f"{model} ({', '.join(own)})" if own else model


@dataclass(frozen=True)
class CheckedRecipe:
    """What the recipes of all tools share; subclasses have `batch_size`, `epochs`, `steps` and `lr`."""

    def __post_init__(self) -> None:
        """Raises ValueError for a value of a wrong type or one that cannot work, naming field and remedy."""
        for field in dataclasses.fields(self):
            checked = _checked(field, getattr(self, field.name), self.shown(field.name, getattr(self, field.name)))
            object.__setattr__(self, field.name, checked)  # lists, as JSON has them, become tuples
        values: Any = self
        if values.epochs is None and values.steps is None:
            raise UserError("neither epochs nor steps: a training needs a length, give one of them")
        if values.epochs is not None and values.steps is not None:
            raise UserError("epochs and steps exclude each other: give one of them")

    @staticmethod
    def shown(name: str, given: Any) -> str:
        """Returns how a user gives a value: `--name value`."""
        return f"--{name.replace('_', '-')} {given}"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the optimizer steps of the whole run."""
        values: Any = self
        return values.steps if values.steps is not None else (values.epochs or 0) * steps_per_epoch

    def replaced(self, values: dict[str, Any]) -> Self:
        """Returns the recipe with some values replaced; steps replaces epochs and the other way round.

        Raises:
            ValueError: unknown name, both lengths, or a value that cannot work.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in names:
                raise UserError(f"unknown recipe value '{name}': {nearest(name, names)}")
        if "embed_dim" in names and not {"model", "encoder"}.isdisjoint(values):
            values = {"embed_dim": None, "depth": None, **values}  # who names an encoder means that one
        lengths = {name: values.get(name) for name in ("epochs", "steps")}
        if None not in lengths.values():
            raise UserError("--epochs and --steps exclude each other: give one of them")
        if any(length is not None for length in lengths.values()):
            values = {**values, **lengths}
        return dataclasses.replace(self, **values)

    def override(self, values: dict[str, Any]) -> Self:
        """Returns what `replaced` returns, with the lr scaled as batch_size is (the linear rule), unless it is given.

        The number of processes changes neither: batch_size counts the images of all of them.
        """
        own: Any = self
        changed: Any = self.replaced(values)
        if "lr" not in values and changed.batch_size != own.batch_size:
            changed = dataclasses.replace(changed, lr=own.lr * changed.batch_size / own.batch_size)
        return changed


def parse_field(field: dataclasses.Field[Any], text: str) -> Any:
    """Returns the value of a field that `text` of the command line stands for: "true", "0.8,1.25", "none", ...

    Raises:
        ValueError: text of another type.
    """
    kind = str(field.type)
    if text.lower() == "none" and kind.endswith("| None") and "none" not in (field.metadata.get("choices") or ()):
        return None
    try:
        if kind.startswith("tuple"):
            items = [item for item in text.strip("()[] ").split(",") if item.strip()]
            return tuple(int(item) if "int" in kind else float(item) for item in items)
        if kind == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
    except (ValueError, KeyError):
        raise UserError(f"{field.name}={text}: expected {_expected(kind)}") from None


def _expected(kind: str) -> str:
    names = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a word"}
    if kind.startswith("tuple"):
        return f"{'integers' if 'int' in kind else 'numbers'} with commas between"
    return names[kind.split(" ")[0]] + (" or none" if "None" in kind else "")


def _checked(field: dataclasses.Field[Any], given: Any, shown: str) -> Any:
    kind, rule = str(field.type), field.metadata
    if given is None and kind.endswith("| None"):
        return None
    items = list(given) if kind.startswith("tuple") and isinstance(given, tuple | list) else [given]
    base = kind.removeprefix("tuple[").split(",")[0].split(" ")[0]
    types: Any = {"int": int, "float": (int, float), "bool": bool, "str": str}[base]
    for item in items:
        wrong = isinstance(item, bool) and base != "bool"
        if wrong or not isinstance(item, types) or (isinstance(item, float) and not math.isfinite(item)):
            raise UserError(f"{shown}: expected {_expected(kind)}")
        if rule["choices"]:
            option = shown.split(" ")[0]
            check_choice(field.name, item, rule["choices"], option if option.startswith("--") else "")
        if base in ("int", "float") and not rule["low"] <= item <= rule["high"]:
            low = "above 0" if rule["low"] == ABOVE_ZERO else f"at least {rule['low']:g}"
            high = "below 1" if rule["high"] == BELOW_ONE else f"at most {rule['high']:g}"
            raise UserError(f"{shown} must be {low}{'' if rule['high'] == math.inf else f' and {high}'}")
    if kind.startswith("tuple"):
        return tuple(float(item) if base == "float" else item for item in items)
    return float(given) if base == "float" else given
