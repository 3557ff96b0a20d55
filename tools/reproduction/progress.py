"""What a plan shows while it runs: a table of the running steps on a terminal, lines elsewhere, the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tools.reproduction.step import Step, last_update

LINE_SECONDS = 60.0
REFRESH_SECONDS = 1.0


class Progress:
    """Counts finished steps and estimates the time left from the expected seconds of the others.

    Args:
        steps: all of them.
        finished: names of those that were finished before.
        jobs: how many run at once.
        spent: seconds of earlier runs, by name.
    """

    def __init__(self, steps: Sequence[Step], finished: set[str], jobs: int, spent: dict[str, float]) -> None:
        self._steps, self._jobs = steps, jobs
        self._done = set(finished)
        self._expected = self._measured = 0.0
        for step in steps:
            if step.name in finished and spent.get(step.name):
                self._expected += step.seconds
                self._measured += spent[step.name]
        self._console = Console(file=sys.stdout, highlight=False)
        self._live: Live | None = None
        self._shown = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the table."""
        self._console.print(text, soft_wrap=True, markup=False)

    def finished(self, step: Step, seconds: float) -> None:
        """Counts a step; `seconds` over all attempts."""
        self._done.add(step.name)
        self._expected += step.seconds
        self._measured += seconds
        self.say(f"{step.name}: finished in {duration(seconds)} ({len(self._done)} of {len(self._steps)})")

    def update(self, running: Sequence[tuple[Step, float]]) -> None:
        """Shows the running steps, each with the monotonic time of its start."""
        now = time.monotonic()
        interval = REFRESH_SECONDS if self._live is not None else LINE_SECONDS
        if not running or now - self._shown < interval:
            return
        self._shown = now
        total = f"{len(self._done)} of {len(self._steps)} steps, left about {self._left(running, now)}"
        if self._live is None:
            names = ", ".join(f"{step.name} {_position(step)}".strip() for step, _ in running)
            self.say(f"{total}; running: {names}")
            return
        table = Table(title=total)
        for column in ("step", "update", "time"):
            table.add_column(column, no_wrap=column != "step")
        for step, started in running:
            table.add_row(step.name, _position(step), duration(now - started))
        self._live.update(table, refresh=True)

    def _left(self, running: Sequence[tuple[Step, float]], now: float) -> str:
        waiting = {step.name: step.seconds for step in self._steps if step.name not in self._done}
        if not any(waiting.values()):
            return "unknown"
        scale = self._measured / self._expected if self._expected and self._measured else 1.0
        seconds = scale * sum(waiting.values())
        for step, started in running:
            seconds -= min(now - started, scale * step.seconds)
        return duration(seconds / max(1, min(self._jobs, len(waiting))))


def _position(step: Step) -> str:
    update = last_update(step.folder) if step.total_updates else None
    return f"{update}/{step.total_updates}" if update is not None else ""


def duration(seconds: float) -> str:
    """Returns hours, minutes and seconds as people write them, such as 1 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
