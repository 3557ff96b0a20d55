"""Where a job's stdout and stderr go: into a log file, or live to the screen. Either way its `error:` line is kept."""

import ctypes
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _stop_with(parent: int) -> None:
    """Asks the kernel to send this process SIGTERM when its parent is gone, killed with -9 too: it saves then."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until the tool has its own handlers, it just ends
        signal.signal(number, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before
            os._exit(128 + signal.SIGTERM)


class Output:
    """What one job says.

    Args:
        log: file that gets the command and all of it; None shows it at once, all but the `error:` line, which the tool
            that runs the job prints at its own end.
    """

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self.remedy = "run the command above by itself" if log is None else f"see {log}"
        self._log_start = 0
        self._errors: list[str] = []
        self._reader: threading.Thread | None = None

    def start(self, command: Sequence[str], shown: str, environment: Mapping[str, str]) -> subprocess.Popen[Any]:
        """Returns the process of a command; `shown` is the command as a user would type it."""
        # A process group of its own: else a Ctrl-C of the terminal reaches it twice, and the second means "at once".
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "env": environment, "process_group": 0}
        parent = os.getpid()
        options["preexec_fn"] = lambda: _stop_with(parent)
        if self.log is None:
            sys.stdout.flush()
            process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
            self._reader = threading.Thread(target=self._pass_on, args=(process.stderr,), daemon=True)
            self._reader.start()
            return process
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as file:
            file.write(f"$ {shown}\n".encode("utf-8", "surrogateescape"))
            file.flush()
            self._log_start = file.tell()
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **options)

    def error(self) -> str | None:
        """Returns the last `error:` line of a process that has ended."""
        if self._reader is not None:
            self._reader.join(timeout=5)  # a worker that outlives the process may hold the pipe open
        elif self.log is not None:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                file.seek(self._log_start)
                self._errors = [line.rstrip("\n") for line in file if line.startswith("error:")]
        return self._errors[-1] if self._errors else None

    def _pass_on(self, stream: Any) -> None:
        for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace"):
            if line.startswith("error:"):
                self._errors.append(line.rstrip("\n"))
            else:
                sys.stderr.write(line)
                sys.stderr.flush()
