"""What a comparison found, to look at: a plot over steps or labels, and a grid of predictions."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from tools.common import plots
from tools.common.spread import mean_and_spread
from tools.comparison.plan import IMAGES, PICTURES, RANDOM, Comparison, Setting, shown_jobs
from tools.comparison.report import Found, amounts, titles, values
from tools.comparison.same_time import read_longer
from tools.running.pictures import as_seen, drawn

NEAR = 0.25
"""Ticks of the logarithmic axis that are nearer to each other than this have one label."""


def save_plot(comparison: Comparison, found: Found) -> Path | None:
    """Writes a panel for each score over the steps, or over the labels where there is one length; None for one point.

    A line is a start (with a share of the labels, where there are several), a bar one standard deviation. Over steps,
    random init's goes on to those that take as long as a pre-training.
    """
    shares, lengths = amounts(comparison)
    names = titles(comparison, found)
    longer = {(RANDOM, one.own_setting): one.scores(comparison) for one in read_longer(comparison)}
    over_steps = len(lengths) > 1 or (len(shares) == 1 and bool(longer) and lengths != [None])
    if not names or (len(comparison.settings) < 2 and not over_steps):
        return None
    if over_steps:
        found = longer | found
    path = comparison.output / PICTURES / "comparison.png"
    path.parent.mkdir(exist_ok=True)
    lines = list(_lines(comparison, found, over_steps))
    rows = math.ceil(len(lines) / len(names))
    height = 3.6 + 0.25 * rows
    with plots.panels(path, len(names), 1.2 + 4.2 * len(names), height) as (figure, axes):
        for axis, score in zip(axes, names, strict=True):
            for label, color, style, settings in lines:
                points = [(s, *mean_and_spread(got)) for s in settings if (got := values(found, *s, score).values())]
                x = [float(s.steps or 0) if over_steps else 100 * s.share for (_, s), _, _ in points]
                means, bars = [mean for _, mean, _ in points], [spread or 0.0 for _, _, spread in points]
                axis.errorbar(x, means, bars, label=label, marker="o", color=color, linestyle=style)
            ticks = [float(steps or 0) for steps in lengths] if over_steps else [100 * share for share in shares]
            for steps in sorted(float(setting.steps or 0) for _, setting in longer) if over_steps else ():
                if all(abs(math.log(steps / tick)) > NEAR for tick in ticks):  # or its label would lie on another
                    ticks.append(steps)
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:,g}" if over_steps else f"{tick:g} %" for tick in ticks], minor=False)
            axis.minorticks_off()
            axis.set(title=score, xlabel="steps of fine-tuning" if over_steps else "share of the labels")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="upper left", ncols=len(names))  # over no whisker
        figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.25 * rows) / height))
    return path


def _lines(
    comparison: Comparison, found: Found, over_steps: bool
) -> Iterator[tuple[str, str, str, list[tuple[str, Setting]]]]:
    """Yields label, colour, style and points of each line of a panel."""
    shares, _ = amounts(comparison)
    for color, start in enumerate(comparison.starts):
        for number, share in enumerate(shares if over_steps else shares[:1]):
            settings = sorted(s for name, s in found if name == start and (s.share == share or not over_steps))
            label = f"{start}, {100 * share:g} % of the labels" if over_steps and len(shares) > 1 else start
            yield label, f"C{color}", ("-", "--", ":", "-.")[number % 4], [(start, s) for s in settings]


def save_pictures(comparison: Comparison) -> Path:
    """Writes predictions.png: the images first, then a column for each start."""
    folder = comparison.output / PICTURES
    files = sorted((folder / IMAGES).iterdir())
    jobs = shown_jobs(comparison)
    grid: dict[str, Sequence[Path | Image.Image]] = {"image": as_seen(jobs[RANDOM].folder, files)}
    grid |= {start: drawn(job.folder, files) for start, job in jobs.items()}
    path = folder / "predictions.png"
    plots.save_grid(grid, path)
    return path
