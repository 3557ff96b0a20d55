"""What a plan shows while it runs: a table of the running jobs on a terminal, lines elsewhere, the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.live import Live
from rich.table import Table

from pretrain.training.progress import Screen, duration
from tools.running.job import Job, last_step

LINE_SECONDS = 60.0
REFRESH_SECONDS = 1.0


class Progress:
    """Counts finished jobs and estimates the time left from the expected seconds of the others.

    `finished` names the jobs that were finished before, `spent` holds the seconds of earlier runs. With `follow`, the
    running jobs and the time left are shown; not where the jobs themselves show what they do.
    """

    def __init__(
        self, jobs: Sequence[Job], finished: set[str], at_once: int, spent: dict[str, float], follow: bool = True
    ) -> None:
        self._jobs, self._at_once, self._follow = jobs, at_once, follow
        self._done = set(finished)
        self._expected = self._measured = 0.0
        for job in jobs:
            if job.name in finished and spent.get(job.name):
                self._expected += job.seconds
                self._measured += spent[job.name]
        self._console = Screen(file=sys.stdout, highlight=False, emoji=False)
        self._live: Live | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        if self._follow and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError):  # the terminal may have gone
                self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the table."""
        self._console.print(text, soft_wrap=True, markup=False)

    def finished(self, job: Job, seconds: float) -> None:
        """Counts a job; `seconds` over all attempts."""
        self._done.add(job.name)
        self._expected += job.seconds
        self._measured += seconds
        self.say(f"{job.name}: finished in {duration(seconds)} ({len(self._done)} of {len(self._jobs)})")

    def update(self, running: Sequence[tuple[Job, float]]) -> None:
        """Shows the running jobs, each with the monotonic time of its start."""
        now = time.monotonic()
        interval = REFRESH_SECONDS if self._live is not None else LINE_SECONDS
        if not self._follow or not running or now - self._shown < interval:
            return
        self._shown = now
        total = f"{len(self._done)} of {len(self._jobs)} jobs, left about {self._left(running, now)}"
        if self._live is None:
            names = ", ".join(f"{job.name} {_position(job)}".strip() for job, _ in running)
            self.say(f"{total}; running: {names}")
            return
        table = Table(title=total)
        for column in ("job", "step", "time"):
            table.add_column(column, no_wrap=column != "job")
        for job, started in running:
            table.add_row(job.name, _position(job), duration(now - started))
        self._live.update(table, refresh=True)

    def _left(self, running: Sequence[tuple[Job, float]], now: float) -> str:
        waiting = {job.name: job.seconds for job in self._jobs if job.name not in self._done}
        if not any(waiting.values()):
            return "unknown"
        scale = self._measured / self._expected if self._expected and self._measured else 1.0
        seconds = scale * sum(waiting.values())
        for job, started in running:
            seconds -= min(now - started, scale * job.seconds)
        return duration(seconds / max(1, min(self._at_once, len(waiting))))


def _position(job: Job) -> str:
    step = last_step(job.folder) if job.num_steps else None
    return "" if step is None else f"{step}/{job.num_steps}"
