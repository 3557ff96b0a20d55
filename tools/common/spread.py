"""Numbers over seeds: mean and spread, as cells of a table and of a CSV file. Free of torch."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence, ValuesView
from statistics import fmean, stdev

Numbers = Sequence[float] | ValuesView[float]
"""Not a mapping: iterated, that would be its keys."""


def mean_and_spread(values: Numbers) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (n - 1); the latter is None for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def shown(values: Numbers, digits: int = 1) -> str:
    """Returns `mean ± spread (n)`, without a spread for one value, "-" for none."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f} (1)" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f} ({len(values)})"


def cells(values: Numbers) -> list[object]:
    """Returns mean, spread and number for a CSV file, unrounded; what is undefined is empty."""
    mean, spread = mean_and_spread(values) if values else ("", None)
    return [mean, "" if spread is None else spread, len(values)]


def listed(items: Iterable[object]) -> str:
    """Returns the items of one CSV cell, with a semicolon between."""
    return "; ".join(map(str, items))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Returns rows as CSV, the header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def certainty(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Returns what the seeds that both have say of "our mean is no lower than theirs".

    Args:
        ours: seed -> value.
        theirs: the same of the others.
    """
    pairs = [(value, theirs[seed]) for seed, value in ours.items() if seed in theirs]
    if len(pairs) < 2:
        return "one seed, no verdict" if pairs else "no seed in common, no verdict"
    each = all(one >= other for one, other in pairs)
    return f"with each of {len(pairs)} seeds" if each else f"in the mean of {len(pairs)} seeds, not with each"


def least_that_equals(
    ours: Mapping[float, float], theirs: Mapping[float, float], saving: bool = False
) -> tuple[float, float] | None:
    """Returns how little of something we need to reach what others have with how much: (ours, theirs).

    Theirs is the largest amount that is equalled by some amount of ours. None where none is.

    Args:
        ours: what is reached, by the amount (of labels, of steps).
        theirs: the same of the others.
        saving: whether only a smaller amount of ours counts.
    """
    for amount, goal in sorted(theirs.items(), reverse=True):
        enough = [less for less in sorted(ours) if ours[less] >= goal and (less < amount or not saving)]
        if enough:
            return enough[0], amount
    return None
