"""What became of every key of a weights file: one table on the screen and one JSON file, the same in every tool."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.training.run_folder import write_json

if TYPE_CHECKING:
    from torch import nn

    from splitmask_backbones.load_report import LoadReport

logger = logging.getLogger(__name__)

MOST_ROWS = 6
"""Keys of the same fate that have a row each on the screen."""


def name_new_parts(report: LoadReport, model: nn.Module, encoder: nn.Module) -> None:
    """Adds what starts from random values around an encoder: its neck and the heads, a row for each part.

    Args:
        report: of the encoder; keys of a pyramid that came along are in it already.
        model: a detector, segmentor or classifier.
    """
    own = {id(parameter) for parameter in encoder.parameters()}
    has_pyramid = any(key.startswith("pyramid.") for key in report.loaded)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if id(parameter) in own or has_pyramid and "pyramid" in parts:
            continue
        end = parts.index("pyramid") if "pyramid" in parts else min(parts[0] == "model", len(parts) - 1)
        part = ".".join(parts[: end + 1])
        counts[part] = counts.get(part, 0) + parameter.numel()
    for part, count in counts.items():
        kind = "neck" if part.endswith("pyramid") else "head"
        report.expected_missing[f"{part}.*"] = f"new {kind}, {count:,} parameters"


def tell(report: LoadReport, path: Path, title: str = "", proof: dict[str, Any] | None = None) -> None:
    """Prints the table, warns where the weights are not whole, and writes the JSON.

    Args:
        title: line above the table; the file's name by default.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("key", "", "why"):
        table.add_column(column, overflow="fold")
    for row in shortened([row for row in report.rows() if row[1] != "loaded"]):
        table.add_row(*row)
    table.add_row(f"{len(report.loaded)} keys", "loaded", "")
    sys.stdout.write(f"{title or report.path}\n")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120).print(table)
    if report.warning:
        logger.warning("%s", report.warning)
    write_json(path, {**(proof or {}), **report.as_json()})


def shortened(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Returns the rows with many keys of the same fate as one for each part of the model; the JSON names them all."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, what, why in rows:
        groups.setdefault((what, why), []).append(key)
    short = []
    for (what, why), keys in groups.items():
        if len(keys) <= MOST_ROWS:
            short += [(key, what, why) for key in keys]
            continue
        parts = Counter(".".join(key.split(".")[:2]) for key in keys)
        whole = {key for key in keys if key.count(".") < 2}
        short += [
            (part if part in whole and count == 1 else f"{part}.* ({count} keys)", what, why)
            for part, count in parts.items()
        ]
    return short


def mark(results: dict[str, Any], report: LoadReport | None) -> dict[str, Any]:
    """Returns the results, with a warning in them where the encoder's weights were not whole."""
    if report is None or not report.warning:
        return results
    return {**results, "warning": report.warning}
