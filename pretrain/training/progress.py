"""What a run shows on the screen: a bar with the time left on a terminal, plain lines elsewhere; its speed."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
SECONDS = 10.0
"""Between two lines."""
NOT_SHOWN = ("step", "epoch", "images", "lr", "grad_norm", "images_per_second")
"""Entries of metrics.jsonl that the line leaves out, or shows in its own way."""


class Screen(Console):
    """A console whose reader may go (`| head`): that is an error like others, where rich would exit without a word."""

    def on_broken_pipe(self) -> NoReturn:
        """Raises BrokenPipeError."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def tracked(items: Iterable[T], total: int, title: str, shown: bool = True) -> Iterator[T]:
    """Yields the items.

    Args:
        items: what takes its time.
        total: how many there are.
        title: in front.
        shown: False in all processes but one.
    """
    console = Screen(file=sys.stdout)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    is_bar = shown and console.is_terminal
    started = last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not is_bar) as bar:
        task = bar.add_task(title, total=total)
        for done, item in enumerate(items, start=1):
            yield item
            bar.advance(task)
            now = time.monotonic()
            if shown and not is_bar and now - last > SECONDS:
                last = now
                left = _clock((now - started) / done * (total - done))
                sys.stdout.write(f"{title} {done}/{total}  left {left}\n")
                sys.stdout.flush()


def shown(values: dict[str, float | None]) -> str:
    """Returns the values that there are, with their names, for a line on the screen."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


def _clock(seconds: float) -> str:
    """Returns hours, minutes and seconds with colons; days are hours."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def duration(seconds: float) -> str:
    """Returns hours, minutes and seconds as people write them, such as 1 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole >= 360_000:
        return f"{whole // 3600:,} h"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Clock:
    """Images per second and the share of time spent waiting for data since the last lap."""

    def __init__(self) -> None:
        self.images = 0
        self._waited = 0.0
        self._start = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it time counts as waiting."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Within it no time passes."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def lap(self) -> tuple[float, float]:
        """Returns images per second and the share of time in [0, 1], and starts again."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        result = self.images / elapsed, self._waited / elapsed
        self.images, self._waited, self._start = 0, 0.0, time.monotonic()
        return result


class ProgressLine:
    """A rich progress bar on a terminal, one plain line per logged step elsewhere; both with the time left."""

    def __init__(self, total_steps: int, start_step: int, title: str) -> None:
        self._console = Screen(file=sys.stdout)
        self._start_step, self._total_steps, self._started = start_step, total_steps, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=start_step, detail="")

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` finished steps."""
        self._bar.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """Shows a line above the bar, or between the lines."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def log(self, entry: dict[str, Any], data_share: float) -> None:
        """Shows a line of metrics.jsonl without NOT_SHOWN, and the share of time spent waiting for data, in [0, 1]."""
        step = entry["step"]
        values = shown({name: value for name, value in entry.items() if name not in NOT_SHOWN})
        detail = f"{values}  {entry['images_per_second']:.1f} images/s  data wait {100 * data_share:.0f} %"
        self._bar.update(self._task, detail=detail)
        if not self._console.is_terminal:
            per_step = (time.monotonic() - self._started) / max(1, step - self._start_step)
            left = _clock(per_step * (self._total_steps - step))
            sys.stdout.write(f"step {step}/{self._total_steps}  {detail}  left {left}\n")
            sys.stdout.flush()
