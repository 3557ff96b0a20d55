"""What became of every key of a weights file: one table on the screen and one JSON file, the same in every tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.run_folder import write_json

if TYPE_CHECKING:
    from torch import nn

    from splitmask_backbones.checkpoints import LoadReport

LOAD_REPORT = "load_report.json"


def name_new_parts(report: LoadReport, model: nn.Module, encoder: nn.Module) -> None:
    """Adds what starts from random values around an encoder: its neck and the heads, a row for each part.

    Args:
        report: of the encoder; keys of a pyramid that came along are in it already.
        model: a detector, segmentor or classifier.
        encoder: the one in it that was loaded.
    """
    own = {id(parameter) for parameter in encoder.parameters()}
    has_pyramid = any(key.startswith("pyramid.") for key in report.loaded)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if id(parameter) in own or has_pyramid and "pyramid" in words:
            continue
        end = words.index("pyramid") if "pyramid" in words else min(words[0] == "model", len(words) - 1)
        part = ".".join(words[: end + 1])
        counts[part] = counts.get(part, 0) + parameter.numel()
    for part, count in counts.items():
        kind = "neck" if part.endswith("pyramid") else "head"
        report.expected_missing[f"{part}.*"] = f"new {kind}, {count:,} parameters"


def tell(report: LoadReport, path: Path, title: str = "", proof: dict[str, Any] | None = None) -> None:
    """Prints the table, warns where the weights are not whole, and writes the JSON.

    Args:
        report: what became of every key.
        path: of the JSON file.
        title: of the table; the file's name by default.
        proof: further entries of the JSON.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or report.path)
    for column in ("key", "", "why"):
        table.add_column(column, overflow="fold")
    for key, what, why in report.rows():
        if what != "loaded":
            table.add_row(key, what, why)
    table.add_row(f"{len(report.loaded)} keys", "loaded", "")
    console = Console(file=sys.stdout)
    console.print(table)
    if report.warning:
        sys.stderr.write(f"warning: {report.warning}\n")
    write_json(path, {**(proof or {}), **report.as_json()})


def mark(results: dict[str, Any], report: LoadReport | None) -> dict[str, Any]:
    """Returns the results, with a warning in them where the encoder's weights were not whole."""
    if report is None or not report.warning:
        return results
    return {**results, "warning": report.warning}
