"""The runs of a comparison: each start at each rate, then with further seeds at its best one. Free of torch."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import read_object
from splitmask_backbones.run_files import CONFIG, REHEARSAL, REHEARSAL_RECORD, RESULTS
from tools.running.job import Job, weights_digest
from tools.running.pictures import copy_numbered, prediction_job
from tools.running.planned import planned_values
from tools.running.scores import read_scores

RANDOM = "random init"
NONE = "none"
"""What the fine-tuning tools call it on the command line."""
PICTURES, IMAGES, SOURCE = "pictures", "images", "source.txt"
REHEARSALS = "rehearsals"
NUM_PICTURES = 6
DRAWS = LABELS = ("train_det", "train_seg")
"""Tools whose `--predict` draws pictures, and those that take a share of the labels."""


def as_folder(start: str) -> str:
    """Returns the folder of a start's runs."""
    return start.replace(" ", "_")


@dataclass(frozen=True, order=True)
class Setting:
    """What the starts are compared at: share of the labels, and steps (None: the config's own)."""

    share: float
    steps: int | None

    @property
    def folder(self) -> str:
        """Its part of a run's path."""
        return f"{100 * self.share:g}_percent/{'default' if self.steps is None else self.steps}_steps"

    @property
    def length(self) -> tuple[int, float]:
        """What it takes beside other settings."""
        return self.steps or 0, self.share

    def argv(self, tool: str) -> list[str]:
        """Returns it as options of a fine-tuning tool; a config may have a share of its own."""
        labels = ["--labels", f"{self.share:g}"] if tool in LABELS else []
        return labels + ([] if self.steps is None else ["--steps", str(self.steps)])


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        tool: of SCORES.
        config: what it fine-tunes, the first of its arguments; "" for a tool without one.
        argv: its further options in every run.
        starts: encoder file or "none" by name; the others are told against the first.
        settings: each with all starts.
        rates: peak learning rates that each start is tried with, None for the config's own.
        seeds: fine-tunings of each start at its best rate; which images a share of the labels holds follows them.
        output: folder of everything.
        same_time: whether random init is also fine-tuned for the time of a start's pre-training.
    """

    tool: str
    config: str
    argv: tuple[str, ...]
    starts: Mapping[str, str]
    settings: tuple[Setting, ...]
    rates: tuple[float | None, ...]
    seeds: int
    output: Path
    same_time: bool = False

    def title(self, setting: Setting) -> str:
        """Returns what tells a setting from the others, in words."""
        names_labels = setting.share < 1 or any(other.share < 1 for other in self.settings)
        labels = [f"{100 * setting.share:g} % of the labels"] if names_labels else []
        steps = [] if setting.steps is None else [f"{setting.steps:,} steps"]
        return ", ".join(labels + steps) or "all labels"

    @property
    def configs(self) -> tuple[str, ...]:
        """The config as arguments."""
        return (self.config,) if self.config else ()

    def folder(self, start: str, setting: Setting, rate: float | None, seed: int) -> Path:
        """Returns the folder of a run."""
        lr = "default" if rate is None else f"{rate:g}"
        return self.output / as_folder(start) / setting.folder / f"lr_{lr}" / f"seed{seed}"

    def job(self, start: str, setting: Setting, rate: float | None, seed: int) -> Job:
        """Returns a run; its seconds are those that its start's rehearsal, once made, gives reason to expect."""
        folder, argv = self.folder(start, setting, rate, seed), self._argv(start, setting, rate, seed)
        name, entry = str(folder.relative_to(self.output)), self._timed(start)
        seconds = 0.0
        if entry:
            share = setting.share / self.shortest.share if self._counts_epochs else 1.0
            steps = round(setting.steps or share * entry["total_steps"])
            each = entry["whole_run"]["evaluations"] / max(1, entry["num_evaluations"])
            eval_every = entry.get("eval_every")
            evaluations = 1 + ((steps - 1) // eval_every if eval_every else 0)
            seconds = entry["setup_seconds"] + evaluations * each + steps * entry["step_seconds"]
        return Job(name, f"{self.tool}.py", argv, folder, RESULTS, seconds=seconds, num_steps=setting.steps)

    def rehearsal(self, start: str) -> Job:
        """Returns the rehearsal of a start's shortest run: a wrong encoder is told before anything is trained."""
        argv = (*self._argv(start, self.shortest, self.rates[0], 0), "--rehearse")
        folder, artefact = self.output / REHEARSALS / as_folder(start), f"{REHEARSAL}/{REHEARSAL_RECORD}"
        job = Job(f"rehearsal of {start}", f"{self.tool}.py", argv, folder, artefact, resumable=False)
        # In a folder of what it tries: other options, or another file of that name, are tried anew.
        tried = hashlib.sha256(repr((job.identity(), weights_digest(self.starts[start]))).encode()).hexdigest()
        return replace(job, folder=folder / tried[:8])

    def rehearsed(self, start: str) -> Path:
        """Returns what the rehearsal of a start leaves."""
        job = self.rehearsal(start)
        return job.folder / job.artefact

    def _timed(self, start: str) -> dict[str, Any]:
        """Returns the rehearsal of a start, else one of before, else another start's: what a step takes is alike.

        A start that had begun before is not rehearsed again, when a start, a rate or a length is added.
        """
        exact, others = self.rehearsed(start), [other for other in self.starts if other != start]
        of_start = {one: self.output / REHEARSALS / as_folder(one) for one in (start, *others)}
        before = [
            file for folder in of_start.values() for file in sorted(folder.glob(f"*/{exact.parent.name}/{exact.name}"))
        ]
        return next((entry for file in (exact, *before) if (entry := read_object(file))), {})

    @property
    def shortest(self) -> Setting:
        """The setting that is rehearsed."""
        return min(self.settings, key=lambda one: one.length)

    @cached_property
    def _counts_epochs(self) -> bool:
        """Whether more images make more steps."""
        job = self.rehearsal(next(iter(self.starts)))
        return planned_values(job.tool, job.argv).get("steps", 0) is None

    def _argv(self, start: str, setting: Setting, rate: float | None, seed: int) -> tuple[str, ...]:
        lr = () if rate is None else ("--lr", f"{rate:g}")
        weights = ("--weights", self.starts[start])
        return (*self.configs, *self.argv, *weights, *setting.argv(self.tool), "--seed", str(seed), *lr)

    def places(self) -> Iterator[tuple[Setting, str]]:
        """Yields each setting with each start: those of one setting follow each other, and short ones come first."""
        for setting in sorted(self.settings, key=lambda one: one.length):
            for start in self.starts:
                yield setting, start

    def runs(self) -> Iterator[tuple[Path, float, int]]:
        """Yields folder, share of the labels and seed of each run that has begun."""
        for setting, start in self.places():
            for rate in self.rates:
                for seed in range(self.seeds):
                    folder = self.folder(start, setting, rate, seed)
                    if (folder / CONFIG).exists():
                        yield folder, setting.share, seed

    def scores(self, start: str, setting: Setting, rate: float | None) -> dict[int, dict[str, float]]:
        """Returns the scores of the finished runs by seed, as of `read_scores`."""
        files = {seed: self.folder(start, setting, rate, seed) / RESULTS for seed in range(self.seeds)}
        return {seed: read_scores(self.tool, file) for seed, file in files.items() if file.exists()}

    def best_rate(self, start: str, setting: Setting) -> float | None:
        """Returns the rate at which seed 0 scored highest (box and mask AP together); of equal ones the lower."""
        if len(self.rates) == 1:
            return self.rates[0]
        found = {rate: self.scores(start, setting, rate).get(0, {}) for rate in self.rates}
        return max(self.rates, key=lambda rate: (sum(found[rate].values()), -(rate or 0.0)))


def first_jobs(comparison: Comparison) -> list[Job]:
    """Returns the runs that are known from the start: seed 0 at each rate, or all seeds where there is one rate."""
    seeds = range(comparison.seeds if len(comparison.rates) == 1 else 1)
    places = [(start, setting, rate) for setting, start in comparison.places() for rate in comparison.rates]
    return [comparison.job(*place, seed) for seed in seeds for place in places]


def further_jobs(comparison: Comparison) -> list[Job]:
    """Returns the other seeds of each start at its best rate; the first jobs have finished."""
    places = [(start, setting, comparison.best_rate(start, setting)) for setting, start in comparison.places()]
    return [comparison.job(*place, seed) for seed in range(1, comparison.seeds) for place in places]


def rehearsals(comparison: Comparison) -> list[Job]:
    """Returns the rehearsals of the starts that no run has begun from yet."""
    begun = [start for start, _ in begun_runs(comparison)]
    return [comparison.rehearsal(start) for start in comparison.starts if start not in begun]


def begun_runs(comparison: Comparison) -> list[tuple[str, Job]]:
    """Returns the runs of `first_jobs` that have begun, each with its start."""
    named = {file: start for start, file in comparison.starts.items()}
    jobs = [job for job in first_jobs(comparison) if job.started]
    return [(named[job.argv[job.argv.index("--weights") + 1]], job) for job in jobs]


def all_seconds(comparison: Comparison) -> float:
    """Returns what the runs that are to do take, those of further seeds included; 0 before the rehearsals."""
    to_do = [job.seconds for job in first_jobs(comparison) if not job.done]
    if not to_do:
        return sum(job.seconds for job in further_jobs(comparison) if not job.done)
    if len(comparison.rates) == 1:
        return sum(to_do)
    further = 0.0
    for setting, start in comparison.places():
        for seed in range(1, comparison.seeds):  # at one of the rates; which one is not known yet
            jobs = [comparison.job(start, setting, rate, seed) for rate in comparison.rates]
            further += 0.0 if any(job.done for job in jobs) else jobs[0].seconds
    return sum(to_do) + further


def count_runs(comparison: Comparison) -> int:
    """Returns how many runs there are in all."""
    return len(comparison.settings) * len(comparison.starts) * (len(comparison.rates) + comparison.seeds - 1)


def shown_jobs(comparison: Comparison) -> dict[str, Job]:
    """Returns by start the run whose predictions are drawn: seed 0, the longest with most labels, the best rate."""
    setting = max(comparison.settings, key=lambda one: one.length)
    rates = {start: comparison.best_rate(start, setting) for start in comparison.starts}
    return {start: comparison.job(start, setting, rate, 0) for start, rate in rates.items()}


def picture_jobs(comparison: Comparison, files: list[Path]) -> list[Job]:
    """Returns the jobs that draw what the runs of `shown_jobs` predict for copies of some pictures."""
    folder = comparison.output / PICTURES / IMAGES
    count, jobs = len(copy_numbered(files, folder)), []
    for run in shown_jobs(comparison).values():
        jobs.append(prediction_job(run.name, run.tool, comparison.configs, run.folder, folder, count))
    return jobs
