"""What a comparison found: a table, and a verdict for each setting."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from pretrain.training.progress import duration
from pretrain.training.run_folder import read_object
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import RESULTS, TABLE, TABLE_CSV
from tools.common import plots
from tools.common.spread import cells, certainty, csv_text, least_that_equals, listed, mean_and_spread, shown
from tools.comparison.plan import RANDOM, Comparison, Setting
from tools.comparison.same_time import Longer, equal_steps, pretraining_seconds, read_longer
from tools.running.scores import SCORES

BySeed = dict[int, dict[str, float]]
"""Seed -> score -> value."""
Found = dict[tuple[str, Setting], BySeed]
"""By start and setting, at the start's best rate."""
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
    return of_score(found[start, setting], score)


def of_score(by_seed: BySeed, score: str) -> dict[int, float]:
    """Returns one score by seed; undefined ones are left out."""
    return {seed: scores[score] for seed, scores in by_seed.items() if score in scores}


def gains(ours: BySeed, theirs: BySeed, score: str) -> list[float]:
    """Returns by how much ours are above theirs in a score, for each seed that both have."""
    our, their = of_score(ours, score), of_score(theirs, score)
    return [value - their[seed] for seed, value in our.items() if seed in their]


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
            against = _against(comparison, found, found[start, setting], found[first, setting])
            told.append(f"{comparison.title(setting)}: {start} against {first}: {against}")
    told += _in_the_same_time(comparison, found)
    told += [line for score in titles(comparison, found) for line in _saved(comparison, found, score)]
    return told + _edges(comparison) + _warnings(comparison, found)


def _against(comparison: Comparison, found: Found, ours: BySeed, theirs: BySeed) -> str:
    """Returns by how much, and with how many seeds, ours are ahead of theirs."""
    by_score = {score: gains(ours, theirs, score) for score in titles(comparison, found)}
    by_score = {score: values for score, values in by_score.items() if values}
    numbers = ", ".join(f"{score} {_signed(values)}" for score, values in by_score.items())
    return f"{numbers}: {verdict([*by_score.values()])}"


def _finished(comparison: Comparison) -> list[Longer]:
    """Returns the longer fine-tunings of random init that have a score."""
    return [one for one in read_longer(comparison) if one.scores(comparison)]


def _in_the_same_time(comparison: Comparison, found: Found) -> list[str]:
    """Returns the verdicts against random init in the same time, or what its steps would be where it was not asked."""
    told = []
    for one in sorted(_finished(comparison), key=lambda one: one.setting):
        against = _against(comparison, found, found[one.start, one.setting], one.scores(comparison))
        told.append(
            f"{comparison.title(one.setting)}: {one.start} against {RANDOM} in the same time ({one.steps:,} steps): "
            f"{against}"
        )
    longest = max(comparison.settings, key=lambda one: one.length)
    for start, seconds in {} if comparison.same_time else pretraining_seconds(comparison).items():
        steps = equal_steps(comparison, start, longest)
        if steps is not None:
            told.append(
                f"the pre-training of {start} took {duration(seconds)}, as long as {steps[1]:,} steps of this "
                "fine-tuning: --same-time tries what they do for random init"
            )
    return told


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
    shares, lengths = amounts(comparison)
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
        pair = least_that_equals(ours, best, saving=True)
        if pair is not None:
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


def amounts(comparison: Comparison) -> tuple[list[float], list[int | None]]:
    """Returns the shares of the labels and the lengths, ascending."""
    shares = {setting.share for setting in comparison.settings}
    return sorted(shares), sorted({one.steps for one in comparison.settings}, key=lambda steps: steps or 0)


def write_table(comparison: Comparison, found: Found) -> None:
    """Writes table.md and table.csv."""
    first, *others = comparison.starts
    settings = sorted(comparison.settings)
    longer = {(one.start, one.setting): one for one in _finished(comparison)}
    header = [comparison.tool, *map(comparison.title, settings)]
    body = []

    def add(score: str, title: str, runs: Sequence[BySeed]) -> None:
        body.append([f"{score}: {title}", *(shown(of_score(by_seed, score).values()) for by_seed in runs)])

    def add_gains(score: str, title: str, ours: Sequence[BySeed], theirs: Sequence[BySeed]) -> None:
        body.append([title, *(shown(gains(*pair, score)) for pair in zip(ours, theirs, strict=True))])

    timed = {one.start: one.title for one in longer.values()}
    runs = {start: [found[start, setting] for setting in settings] for start in comparison.starts}
    for score in titles(comparison, found):
        for start in comparison.starts:
            add(score, start, runs[start])
        for start in others:
            add_gains(score, f"{start} above {first}", runs[start], runs[first])
        for start, title in timed.items():
            same_time = [longer.get((start, setting)) for setting in settings]
            theirs = [{} if one is None else one.scores(comparison) for one in same_time]
            add(score, title, theirs)
            add_gains(score, f"{start} above that", runs[start], theirs)
    if comparison.rates != (None,):
        for start in comparison.starts:
            rates = [comparison.best_rate(start, setting) for setting in settings]
            body.append([f"lr: {start}", *(f"{rate:g}" for rate in rates if rate is not None)])
    for start, title in timed.items():
        ones = [longer.get((start, setting)) for setting in settings]
        body.append([f"steps: {title}", *("-" if one is None else f"{one.steps:,}" for one in ones)])
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
    rows += [
        [one.title, one.setting.share, one.steps, one.rate or "", score, *cells(numbers), listed(numbers)]
        for score in titles(comparison, found)
        for one in longer.values()
        if (numbers := of_score(one.scores(comparison), score).values())
    ]
    write_atomically(comparison.output / TABLE_CSV, csv_text([CSV_HEADER, *rows]).encode())
