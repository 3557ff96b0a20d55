"""SIGTERM and SIGINT: at once while a run is being set up, after the running step while it trains."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager that turns SIGTERM and SIGINT into exit codes 143 and 130.

    Outside `graceful` sections a signal raises SystemExit where it meets the program. Within, it is kept in
    `received` for the loop to act on; a second one raises at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.graceful = False
        self._before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.graceful and self.received is None:
            self.received = number
            return
        raise SystemExit(128 + number)

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def ignore_in_worker() -> None:
    """Lets a data worker ignore both signals: the main process stops its workers after it has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
