"""What the study says about few labels: columns, a plot over the labels, and a sentence for each number."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from tools.common.plots import markdown_table, panels
from tools.common.spread import Numbers, certainty, least_that_equals, mean_and_spread, shown
from tools.reproduction.study import ROWS

Values = dict[str, dict[str, dict[int, float]]]  # column -> row -> seed -> value
Curves = dict[float, Values]
"""By the share of the labels, ascending, up to 1.0."""

CAPTION = (
    "Shares of the training images (nested, drawn by the seed), fine-tuned with the same steps. Above random init: "
    "seed by seed, with the same labels in the same order; which labels a seed draws moves both rows."
)
RANDOM, FULL = "random", "full"


def column(name: str, share: float) -> str:
    """Returns the name of a column: that of the number, and the share of the labels where it is not all of them."""
    return name if share == 1 else f"{name}, {100 * share:g} % of the labels"


def measured(curves: Curves) -> Iterator[tuple[str, float, str, Numbers]]:
    """Yields number, share, row and its values, where there are some."""
    for name in next(iter(curves.values()), {}):
        for share, values in curves.items():
            for row, found in values[name].items():
                if found:
                    yield name, share, row, found.values()


def section(curves: Curves, gains: Curves) -> str:
    """Returns table and sentences, as Markdown; nothing where no share but all of the labels was measured.

    Args:
        curves: what was reached.
        gains: by how much that is above random init with the same seed.
    """
    few = [(name, row) for name, share, row, _ in measured(curves) if share < 1]
    if not few:
        return ""
    header = ["fine-tuned on", *(f"{100 * share:g} %" for share in curves)]
    body = []
    for name in dict.fromkeys(name for name, _ in few):
        rows = [row for row in ROWS if (name, row) in few]
        body += [[f"{name}, {ROWS[row].title}", *_cells(curves, name, row)] for row in rows]
        body += [[f"above {ROWS[RANDOM].title}", *_cells(gains, name, row)] for row in rows if row == FULL]
    lines = [markdown_table(header, body), CAPTION, "", *(f"- {text}" for text in sentences(curves))]
    return "\n" + "\n".join(lines) + "\n"


def _cells(curves: Curves, name: str, row: str) -> list[str]:
    return [shown(values.get(name, {}).get(row, {}).values()) for values in curves.values()]


def sentences(curves: Curves) -> list[str]:
    """Returns for each number how few labels SplitMask needs for what random init reaches with how many.

    Named is the largest share of random init that a share of SplitMask's reaches in the mean, and the least such one.
    Where random init has no use for more labels, the comparison is not one of labels, and that is told too.
    """
    told = []
    for name in next(iter(curves.values()), {}):
        found = {
            row: {share: values[name][row] for share, values in curves.items() if values[name].get(row)}
            for row in (RANDOM, FULL)
        }
        if len(found[RANDOM]) > 1 and len(found[FULL]) > 1:
            told.append(f"{name}: {_compared(found[FULL], found[RANDOM])}{_falling(_means(found[RANDOM]))}")
    return told


def _means(of_shares: Mapping[float, Mapping[int, float]]) -> dict[float, float]:
    return {share: fmean(values.values()) for share, values in of_shares.items()}


def _compared(full: Mapping[float, Mapping[int, float]], random: Mapping[float, Mapping[int, float]]) -> str:
    ours, theirs = _means(full), _means(random)
    pair = least_that_equals(ours, theirs)
    if pair is None:
        return f"SplitMask equals random init with no share of the labels ({max(ours.values()):.1f} at most)"
    few, many = pair
    return (
        f"SplitMask with {100 * few:g} % of the labels equals random init with {100 * many:g} % "
        f"({ours[few]:.1f} against {theirs[many]:.1f}, {certainty(full[few], random[many])})"
    )


def _falling(random: dict[float, float]) -> str:
    """Returns what is to be added where random init is not best with the most labels, else nothing."""
    most, best = max(random), max(random, key=lambda share: random[share])
    if best == most:
        return ""
    return (
        f"; but random init itself is better with {100 * best:g} % than with {100 * most:g} % ({random[best]:.1f} and "
        f"{random[most]:.1f}): within these steps it is not labels that are short"
    )


def save_plot(curves: Curves, path: Path) -> None:
    """Writes a panel for each number: its mean over the labels by row, with a bar of one standard deviation.

    Writes nothing for one share alone.
    """
    names = list(dict.fromkeys(name for name, share, _, _ in measured(curves) if share < 1))
    if not names:
        return
    rows = [row for row in ROWS if any(len(_line(curves, name, row)) > 1 for name in names)]
    legend: dict[str, Any] = {}  # of all panels: one may lack a row
    with panels(path, len(names), 1.2 + 3.6 * len(names), 3.4) as (figure, axes):
        for axis, name in zip(axes, names, strict=True):
            for number, row in enumerate(rows):
                points = [(100 * share, *mean_and_spread(found)) for share, found in _line(curves, name, row)]
                if len(points) > 1:
                    shares, means, spreads = zip(*points, strict=True)
                    bars, title = [spread or 0.0 for spread in spreads], ROWS[row].title
                    axis.errorbar(shares, means, bars, marker="o", color=f"C{number}", label=title)
            handles, shown_here = axis.get_legend_handles_labels()
            legend |= dict(zip(shown_here, handles, strict=True))
            ticks = [100 * share for share in curves]
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g} %" for tick in ticks], minor=False)
            axis.minorticks_off()
            axis.set(title=name, xlabel="share of the labels")
        titles = [ROWS[row].title for row in rows]
        lines, columns = [legend[title] for title in titles], max(1, len(titles))
        figure.legend(lines, titles, frameon=False, loc="upper left", ncols=columns)  # over no whisker
        figure.tight_layout(rect=(0, 0, 1, 0.94))


def _line(curves: Curves, name: str, row: str) -> list[tuple[float, Numbers]]:
    return [(share, values[name][row].values()) for share, values in curves.items() if values[name].get(row)]
