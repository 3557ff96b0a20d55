"""Mean and spread over seeds, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (n - 1); the latter is None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Returns `mean ± spread (n)`, without a spread for one value, "-" for none."""
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return f"{mean:.{digits}f} (1)" if spread is None else f"{mean:.{digits}f} ± {spread:.{digits}f} ({len(values)})"
