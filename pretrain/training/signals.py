"""SIGTERM and SIGINT: at once while a run is being set up, after the running step while it trains."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType
from typing import ClassVar

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager that turns SIGTERM and SIGINT into exit codes 143 and 130.

    Outside `graceful` sections a signal raises SystemExit where it meets the program. Within, it is kept in
    `received` for the loop to act on; a second one raises at once. Where the run has several processes, one that waits
    in a collective is ended from a thread (`distributed.end_where_blocked`).
    """

    _active: ClassVar[list[StopSignals]] = []

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
        if not self._active and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _watch()
        self._active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._active.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _watch() -> None:
    """Starts the thread that acts on signals while the main thread is not in Python."""
    from pretrain.training.distributed import end_where_blocked

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def follow() -> None:
        with writer:  # kept as long as the thread
            while True:
                number = reader.recv(1)[0]
                if number in SIGNALS:
                    end_where_blocked(number, lambda: bool(StopSignals._active) and StopSignals._active[-1].graceful)

    threading.Thread(target=follow, daemon=True).start()


def ignore_in_worker() -> None:
    """Lets a data worker ignore both signals: the main process stops its workers after it has saved."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
