"""Random init with the time of a pre-training on top: how many steps that is, and its runs. Free of torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.training.metrics import read_json_lines, training_seconds
from pretrain.training.run_folder import read_object, write_json
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import CONFIG, ENCODER, METRICS_LOG
from tools.comparison.plan import RANDOM, Comparison, Setting
from tools.running.job import Job, weights_digest

RECORD, WEIGHTS = "same_time.json", "--weights"
"""Start -> folder of a setting -> steps, once they are known: measured anew they would be others.

Beside them the digest of the encoder they are for.
"""


@dataclass(frozen=True)
class Longer:
    """Random init that is fine-tuned for as long as a start's pre-training and fine-tuning take together.

    Attributes:
        start: that it is compared with.
        setting: of that start.
        steps: of its own fine-tuning.
        rate: its peak learning rate, the best one of random init at the setting; None for the config's.
    """

    start: str
    setting: Setting
    steps: int
    rate: float | None

    @property
    def title(self) -> str:
        """What a table calls it, whatever the setting."""
        return f"{RANDOM}, in the time of {self.start}"

    @property
    def own_setting(self) -> Setting:
        """The setting it is trained at."""
        return Setting(self.setting.share, self.steps)

    def scores(self, comparison: Comparison) -> dict[int, dict[str, float]]:
        """Returns the scores of its finished runs by seed."""
        return comparison.scores(RANDOM, self.own_setting, self.rate)


def pretraining_seconds(comparison: Comparison) -> dict[str, float]:
    """Returns by start how long its pre-training took, of those that lie in the folder of theirs."""
    found = {}
    for start, given in comparison.starts.items():
        file = Path(given).resolve()
        if start == RANDOM or file.name != ENCODER or read_object(file.parent / CONFIG).get("command") != "pretrain":
            continue
        seconds = training_seconds(file.parent)
        if seconds is not None:
            found[start] = seconds
    return found


def check_same_time(comparison: Comparison, at_once: int) -> None:
    """Raises ValueError where no start says how long its pre-training took, or steps are slowed by others."""
    if at_once > 1:
        raise UserError(
            f"--same-time measures how long steps take, which --jobs {at_once} runs at once slow down: omit --jobs"
        )
    if not pretraining_seconds(comparison):
        raise UserError(
            f"--same-time: none of the encoders is the {ENCODER} in the folder of its pre-training, whose "
            f"{METRICS_LOG} says how long it took: name that file, or omit --same-time"
        )


def equal_steps(comparison: Comparison, start: str, setting: Setting) -> tuple[int, int] | None:
    """Returns the steps of random init's run at a setting, and those that take as long as a start's pre-training.

    Both by what the runs have measured, without their set-up and evaluations. None where that is not known.
    """
    seconds = pretraining_seconds(comparison).get(start)
    folder = comparison.folder(RANDOM, setting, comparison.best_rate(RANDOM, setting), 0)
    trained, entries = training_seconds(folder), read_json_lines(folder / METRICS_LOG)
    if seconds is None or not trained:
        return None
    steps = int(entries[-1]["step"])
    return steps, max(1, round(seconds * steps / trained))


def settle(comparison: Comparison) -> None:
    """Writes down how long random init is trained for each start and setting; what stands there already is kept.

    The runs at the settings have finished.
    """
    record = read_object(comparison.output / RECORD)
    for setting, start in comparison.places():
        known, steps = _known(comparison, record, start), equal_steps(comparison, start, setting)
        if steps is not None:
            record[start] = {setting.folder: sum(steps)} | known | {WEIGHTS: _digest(comparison, start)}
    write_json(comparison.output / RECORD, record)


def _digest(comparison: Comparison, start: str) -> str:
    return weights_digest(comparison.starts[start])


def _known(comparison: Comparison, record: dict[str, Any], start: str) -> dict[str, int]:
    """Returns the steps by folder of a setting; none where they are for another encoder of that name."""
    entry = record.get(start)
    if not isinstance(entry, dict) or entry.get(WEIGHTS) != _digest(comparison, start):
        return {}
    return {folder: steps for folder, steps in entry.items() if isinstance(steps, int)}


def read_longer(comparison: Comparison) -> list[Longer]:
    """Returns what has been settled for the starts and settings of a comparison; none where it is not asked for."""
    record = read_object(comparison.output / RECORD) if comparison.same_time else {}
    return [
        Longer(start, setting, steps, comparison.best_rate(RANDOM, setting))
        for setting, start in comparison.places()
        if (steps := _known(comparison, record, start).get(setting.folder))
    ]


def longer_jobs(comparison: Comparison) -> list[Job]:
    """Returns the runs of random init that were settled, each once."""
    jobs = [
        comparison.job(RANDOM, one.own_setting, one.rate, seed)
        for seed in range(comparison.seeds)
        for one in read_longer(comparison)
    ]
    return [*{job.name: job for job in jobs}.values()]


def longer_runs(comparison: Comparison) -> Iterator[tuple[Path, float, int]]:
    """Yields folder, share of the labels and seed of each of them that has begun, as `Comparison.runs` does."""
    for one in read_longer(comparison):
        for seed in range(comparison.seeds):
            folder = comparison.folder(RANDOM, one.own_setting, one.rate, seed)
            if (folder / CONFIG).exists():
                yield folder, one.setting.share, seed


def longer_seconds(comparison: Comparison) -> float:
    """Returns what those that are to do take: each start's pre-training and a fine-tuning, for each seed."""
    if not comparison.same_time:
        return 0.0
    settled = {(one.start, one.setting) for one in read_longer(comparison)}
    times = pretraining_seconds(comparison)
    open_ones = [(setting, start) for setting, start in comparison.places() if start in times]
    each = [
        times[start] + comparison.job(RANDOM, setting, None, 0).seconds
        for setting, start in open_ones
        if (start, setting) not in settled
    ]
    return comparison.seeds * sum(each) + sum(job.seconds for job in longer_jobs(comparison) if not job.done)
