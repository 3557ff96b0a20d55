"""Curves of losses, grids of pictures, and tables for the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = dict[str, tuple[list[float], list[float]]]  # label -> steps, values


def curve(entries: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Returns the steps and values of one metric, without the entries that lack it."""
    kept = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    return [step for step, _ in kept], [value for _, value in kept]


@contextmanager
def panels(path: Path, count: int, width: float, height: float) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Yields a figure with `count` panels side by side, `width` x `height` inches in all; written when the block ends.

    Without pyplot, whose backend belongs to whoever draws in the same process.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    yield figure, axes
    figure.savefig(path, dpi=120)


def save_curves(charts: dict[str, Curves], path: Path, x_label: str = "step") -> None:
    """Writes a row of panels, one line a curve: panel title -> label -> (steps, values); few points get marks."""
    with panels(path, len(charts), 4.4 * len(charts), 3.4) as (figure, axes):
        for axis, (title, curves) in zip(axes, charts.items(), strict=True):
            for label, (steps, values) in curves.items():
                mark = "." if len(steps) < 3 or x_label != "step" else None
                axis.plot(steps, values, label=label, linewidth=1.6, marker=mark)
            axis.set(title=title, xlabel=x_label)
            if curves:
                axis.legend(frameon=False)
        figure.tight_layout()


WIDEST = 4
"""Heights that a picture of a grid may be wide; a wider one is lower."""


def save_grid(columns: Mapping[str, Sequence[Path | Image.Image]], path: Path, cell: int = 240, gap: int = 6) -> None:
    """Writes a grid of pictures or their files: one column a title, each made `cell` pixels high.

    All columns must be equally long; a column is as wide as its title and its widest picture, WIDEST heights at most.
    """
    pictures = {title: [_of_height(file, cell) for file in files] for title, files in columns.items()}
    font, head = ImageFont.load_default(size=18), 30
    widths = [
        max([round(font.getlength(title)) + 10, *(picture.width for picture in column)])
        for title, column in pictures.items()
    ]
    rows = max((len(column) for column in pictures.values()), default=0)
    canvas = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), head + rows * (cell + gap)), "white")
    pen, left = ImageDraw.Draw(canvas), gap
    for (title, column), width in zip(pictures.items(), widths, strict=True):
        pen.text((left + 2, 5), title, fill="black", font=font)
        for row, picture in enumerate(column):
            canvas.paste(picture, (left, head + row * (cell + gap)))
        left += width + gap
    canvas.save(path)


def _of_height(picture: Path | Image.Image, height: int) -> Image.Image:
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            rgb = opened.convert("RGB")
    else:
        rgb = picture.convert("RGB")
    scale = min(height / rgb.height, WIDEST * height / rgb.width)
    return rgb.resize((max(1, round(scale * rgb.width)), max(1, round(scale * rgb.height))), Image.Resampling.LANCZOS)


def show(value: float | None) -> str:
    """Returns a percentage with one digit; None is "undefined"."""
    return "undefined" if value is None else f"{value:.1f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown: the first column to the left, numbers to the right."""
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(title: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table to the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table, width=max(console.width, 80))
