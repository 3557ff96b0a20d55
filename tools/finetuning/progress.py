"""Progress with the time left while a model is evaluated: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SECONDS = 10.0
"""Between two lines."""


def tracked(items: Iterable[T], total: int, title: str, shown: bool = True) -> Iterator[T]:
    """Yields the items.

    Args:
        items: what takes its time.
        total: how many there are.
        title: in front.
        shown: False in all processes but one.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stdout)
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
                left = time.strftime("%H:%M:%S", time.gmtime((now - started) / done * (total - done)))
                sys.stdout.write(f"{title} {done}/{total}  left {left}\n")
                sys.stdout.flush()
