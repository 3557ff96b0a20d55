"""SIGTERM, SIGINT and a hang-up: at once while a run is being set up, after the running step while it trains.

Of processes that serve another one (data workers), the other decides when they end: by its word or by its death.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import ClassVar, TextIO

from pretrain.training.processes import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last is that of a terminal which is closed, or of a connection that breaks."""
_LOOK_SECONDS = 1.0


def discard(*streams: TextIO) -> None:
    """Sends streams, which nobody reads any more, to nowhere, whoever holds them."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with suppress(OSError):  # one that is no file
            os.dup2(null, stream.fileno())
    os.close(null)


class StopSignals:
    """Context manager that turns SIGTERM and SIGINT into exit codes 143 and 130.

    Outside `graceful` sections a signal raises SystemExit where it meets the program. Within, it is kept in
    `received` for the loop to act on; a second one raises at once. A hang-up counts as SIGTERM, once, since shell and
    kernel both send it; where it is ignored (nohup) it stays so. Where the run has several processes, one that waits
    in a collective is ended from a thread (`distributed.end_where_blocked`). In a thread other than the main one, where
    Python handles no signals, it leaves them to the main program.
    """

    _active: ClassVar[list[StopSignals]] = []

    def __init__(self) -> None:
        self.received: int | None = None
        self.graceful = False
        self._hung_up = False
        self._before: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            if self._hung_up:
                return
            self._hung_up, number = True, signal.SIGTERM
            discard(sys.stdout, sys.stderr)
        if self.graceful and self.received is None:
            self.received = number
            return
        raise SystemExit(128 + number)

    def __enter__(self) -> StopSignals:
        own = processes()
        if threading.current_thread() is not threading.main_thread():
            return self
        ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS if number not in ignored}
        if not self._active and own.world_size > 1:
            _watch()
        self._active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        self._active.remove(self)
        for number, handler in self._before.items():
            # None: one that was not set by Python, and cannot be set again by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]


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


def end_with_parent() -> None:
    """Starts the thread that ends this process, at once and without a word, when the process that it serves is gone.

    However that was killed. A worker that only asks between two items (as torch's do) may wait for ever for somebody to
    read its last one.
    """
    parent, father = multiprocessing.parent_process(), os.getppid()

    def follow() -> None:
        # Two signs, for each start method has one that comes late: forked brothers hold the pipe that `join` waits for,
        # and the father of a worker that a server forked is that server.
        while parent is not None and parent.is_alive() and os.getppid() == father:
            parent.join(_LOOK_SECONDS)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()


def ignore_in_worker() -> None:
    """Lets a data worker ignore the signals: the main process stops its workers after it has saved."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
