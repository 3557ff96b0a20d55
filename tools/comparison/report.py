"""What a comparison found: a table, a verdict for each setting, a plot, and a grid of pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pretrain.training.run_folder import read_object
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import RESULTS, TABLE, TABLE_CSV
from tools.common import plots
from tools.common.spread import cells, certainty, csv_text, least_that_equals, listed, mean_and_spread, shown
from tools.comparison.plan import IMAGES, PICTURES, Comparison, Setting, shown_jobs
from tools.running.pictures import drawn
from tools.running.scores import SCORES

Found = dict[tuple[str, Setting], dict[int, dict[str, float]]]
"""By start and setting, at the start's best rate: seed -> score -> value."""
CSV_HEADER = ("start", "labels", "steps", "lr", "score", "mean", "spread", "n", "values")
CAPTION = (
    "On the validation images, in percent: mean ± standard deviation over seeds (number of seeds). Above: of the "
    "differences between the runs of one seed, which see the same labels in the same order."
)
RATES = "A rate is the best of those tried with seed 0 on the same images."


def read(comparison: Comparison) -> Found:
    """Returns the scores of all finished runs at the best rates."""
    return {
        (start, setting): comparison.scores(start, setting, comparison.best_rate(start, setting))
        for setting, start in comparison.places()
    }


def values(found: Found, start: str, setting: Setting, score: str) -> dict[int, float]:
    """Returns a score of a start, by seed; undefined ones are left out."""
    return {seed: scores[score] for seed, scores in found[start, setting].items() if score in scores}


def gains(found: Found, start: str, against: str, setting: Setting, score: str) -> list[float]:
    """Returns by how much a start is above another in a score, for each seed that both have."""
    ours, theirs = (values(found, one, setting, score) for one in (start, against))
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def verdict(differences: Sequence[Sequence[float]]) -> str:
    """Returns what the seeds say of one start against another.

    Args:
        differences: by score, seed by seed.
    """
    every = [value for of_score in differences for value in of_score]
    count = min(map(len, differences), default=0)
    if count < 2:
        return "one seed, no verdict" if count else "nothing to compare"
    if all(value > 0 for value in every):
        return f"ahead with each of {count} seeds"
    if all(value < 0 for value in every):
        return f"behind with each of {count} seeds"
    return f"not told apart by {count} seeds"


def titles(comparison: Comparison, found: Found) -> list[str]:
    """Returns the scores that a run has: a detector of boxes alone has no mask AP."""
    names = {name for runs in found.values() for scores in runs.values() for name in scores}
    return [title for title in SCORES[comparison.tool] if title in names]


def sentences(comparison: Comparison, found: Found) -> list[str]:
    """Returns the verdict on each start at each setting, what steps or labels it saves, and which rates to try yet."""
    first, *others = comparison.starts
    told = []
    for setting in sorted(comparison.settings):
        for start in others:
            by_score = {score: gains(found, start, first, setting, score) for score in titles(comparison, found)}
            by_score = {score: values for score, values in by_score.items() if values}
            numbers = ", ".join(f"{score} {_signed(values)}" for score, values in by_score.items())
            told.append(
                f"{comparison.title(setting)}: {start} against {first}: {numbers}: {verdict([*by_score.values()])}"
            )
    told += [line for score in titles(comparison, found) for line in _saved(comparison, found, score)]
    return told + _edges(comparison) + _warnings(comparison, found)


def _warnings(comparison: Comparison, found: Found) -> list[str]:
    """Returns what the runs warn of, such as weights that were not whole, once for each start."""
    told: dict[str, None] = {}  # each once, in order
    for start, setting in found:
        rate = comparison.best_rate(start, setting)
        for seed in found[start, setting]:
            results = read_object(comparison.folder(start, setting, rate, seed) / RESULTS)
            if "warning" in results:
                told[f"warning: {start}: {results['warning']}"] = None
    return list(told)


def _signed(differences: Sequence[float]) -> str:
    mean, spread = mean_and_spread(differences)
    return f"{mean:+.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def _saved(comparison: Comparison, found: Found, score: str) -> list[str]:
    """Returns how many steps, and how few labels, each start needs for what the first one reaches with how many."""
    first, *others = comparison.starts
    told = []
    shares, lengths = _amounts(comparison)
    means = {key: fmean(by_seed.values()) for key in found if (by_seed := values(found, *key, score))}

    def equal(start: str, settings: Mapping[float, Setting], unit: str, where: str) -> None:
        ours, theirs = (
            {amount: means[name, setting] for amount, setting in settings.items() if (name, setting) in means}
            for name in (start, first)
        )
        best: dict[float, float] = {}  # so far: more steps may be worse than fewer
        for amount in sorted(theirs):
            if theirs[amount] > max(best.values(), default=0.0):
                best[amount] = theirs[amount]
        pair = least_that_equals(ours, best)
        if pair is not None and pair[0] < pair[1]:
            less, more = pair
            sure = certainty(
                *(values(found, *key, score) for key in ((start, settings[less]), (first, settings[more])))
            )
            reached = f"({ours[less]:.1f} and {theirs[more]:.1f}, {sure})"
            told.append(f"{where}{score}: {start} with {less:,g}{unit} reaches {first} with {more:,g}{unit} {reached}")

    for start in others:
        for share in shares:
            at = {float(one.steps or 0): one for one in comparison.settings if one.share == share}
            equal(start, at, " steps", f"{100 * share:g} % of the labels: " if len(shares) > 1 else "")
        for steps in lengths:
            at = {100 * one.share: one for one in comparison.settings if one.steps == steps}
            equal(start, at, " % of the labels", f"{steps:,} steps: " if steps and len(lengths) > 1 else "")
    return told


def _edges(comparison: Comparison) -> list[str]:
    """Returns where the best of several rates is the least or the greatest one, so that a better one may lie beyond."""
    tried = sorted(rate for rate in comparison.rates if rate is not None)
    if len(tried) < 2:
        return []
    told = []
    for end, beyond in ((tried[0], "lower"), (tried[-1], "higher")):
        at = [
            f"{start} ({comparison.title(s)})"
            for s, start in comparison.places()
            if comparison.best_rate(start, s) == end
        ]
        if at:
            told.append(f"--lr {end:g} is the best rate tried for {', '.join(at)}: a {beyond} one may be better yet")
    return told


def _amounts(comparison: Comparison) -> tuple[list[float], list[int | None]]:
    """Returns the shares of the labels and the lengths, ascending."""
    shares = {setting.share for setting in comparison.settings}
    return sorted(shares), sorted({one.steps for one in comparison.settings}, key=lambda steps: steps or 0)


def write_table(comparison: Comparison, found: Found) -> None:
    """Writes table.md and table.csv."""
    first, *others = comparison.starts
    settings = sorted(comparison.settings)
    header = [comparison.tool, *map(comparison.title, settings)]
    body = []
    for score in titles(comparison, found):
        for start in comparison.starts:
            cells_of = [shown(values(found, start, setting, score).values()) for setting in settings]
            body.append([f"{score}: {start}", *cells_of])
        for start in others:
            differences = [shown(gains(found, start, first, setting, score)) for setting in settings]
            body.append([f"{start} above {first}", *differences])
    if comparison.rates != (None,):
        for start in comparison.starts:
            rates = [comparison.best_rate(start, setting) for setting in settings]
            body.append([f"lr: {start}", *(f"{rate:g}" for rate in rates if rate is not None)])
    caption = f"{CAPTION} {RATES}" if len(comparison.rates) > 1 else CAPTION
    lines = [plots.markdown_table(header, body), caption, "", *(f"- {text}" for text in sentences(comparison, found))]
    write_atomically(comparison.output / TABLE, ("\n".join(lines) + "\n").encode())
    rows = [
        [start, setting.share, setting.steps or "", comparison.best_rate(start, setting) or "", score]
        + [*cells(numbers), listed(numbers)]
        for score in titles(comparison, found)
        for setting in settings
        for start in comparison.starts
        if (numbers := values(found, start, setting, score).values())
    ]
    write_atomically(comparison.output / TABLE_CSV, csv_text([CSV_HEADER, *rows]).encode())


def save_plot(comparison: Comparison, found: Found) -> Path | None:
    """Writes a panel for each score over the steps, or over the labels where there is one length; None for one setting.

    A line is a start (with a share of the labels, where there are several), a bar one standard deviation.
    """
    shares, lengths = _amounts(comparison)
    names = titles(comparison, found)
    if not names or len(comparison.settings) < 2:
        return None
    over_steps = len(lengths) > 1
    path = comparison.output / PICTURES / "comparison.png"
    path.parent.mkdir(exist_ok=True)
    lines = list(_lines(comparison, over_steps))
    rows = math.ceil(len(lines) / len(names))
    height = 3.6 + 0.25 * rows
    with plots.panels(path, len(names), 1.2 + 4.2 * len(names), height) as (figure, axes):
        for axis, score in zip(axes, names, strict=True):
            for label, color, style, settings in lines:
                points = [(s, *mean_and_spread(got)) for s in settings if (got := values(found, *s, score))]
                x = [float(s.steps or 0) if over_steps else 100 * s.share for (_, s), _, _ in points]
                means, bars = [mean for _, mean, _ in points], [spread or 0.0 for _, _, spread in points]
                axis.errorbar(x, means, bars, label=label, marker="o", color=color, linestyle=style)
            ticks = [float(steps or 0) for steps in lengths] if over_steps else [100 * share for share in shares]
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:,g}" if over_steps else f"{tick:g} %" for tick in ticks], minor=False)
            axis.minorticks_off()
            axis.set(title=score, xlabel="steps of fine-tuning" if over_steps else "share of the labels")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="upper left", ncols=len(names))  # over no whisker
        figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.25 * rows) / height))
    return path


def _lines(comparison: Comparison, over_steps: bool) -> Iterator[tuple[str, str, str, list[tuple[str, Setting]]]]:
    """Yields label, colour, style and points of each line of a panel."""
    shares, _ = _amounts(comparison)
    for color, start in enumerate(comparison.starts):
        for number, share in enumerate(shares if over_steps else shares[:1]):
            settings = [s for s in sorted(comparison.settings) if s.share == share or not over_steps]
            label = f"{start}, {100 * share:g} % of the labels" if over_steps and len(shares) > 1 else start
            yield label, f"C{color}", ("-", "--", ":", "-.")[number % 4], [(start, s) for s in settings]


def save_pictures(comparison: Comparison) -> Path:
    """Writes predictions.png: the images first, then a column for each start."""
    folder = comparison.output / PICTURES
    files = sorted((folder / IMAGES).iterdir())
    grid = {"image": files} | {start: drawn(job.folder, files) for start, job in shown_jobs(comparison).items()}
    path = folder / "predictions.png"
    plots.save_grid(grid, path)
    return path
