"""Where a job's stdout and stderr go: into a log file, or live to the screen. Either keeps the job's `error:` line."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Output:
    """One of both.

    Attributes:
        remedy: what a user does about a job that ended without an `error:` line.
    """

    remedy: str

    def start(self, command: Sequence[str], shown: str, environment: Mapping[str, str]) -> subprocess.Popen[Any]:
        """Returns the process of a command; `shown` is the command as a user would type it."""
        raise NotImplementedError

    def error(self) -> str | None:
        """Returns the last `error:` line of a process that has ended, since its start."""
        raise NotImplementedError


def _popen(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> subprocess.Popen[Any]:
    # A process group of its own: a terminal's Ctrl-C would otherwise reach it twice, and the second means "at once".
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env={**environment, "PYTHONUNBUFFERED": "1"}, process_group=0, **streams
    )


class LogFile(Output):
    """Appends the command and everything that the job says to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.remedy = f"see {path}"
        self._start = 0

    def start(self, command: Sequence[str], shown: str, environment: Mapping[str, str]) -> subprocess.Popen[Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(f"$ {shown}\n".encode("utf-8", "surrogateescape"))
            file.flush()
            self._start = file.tell()
            return _popen(command, environment, stdout=file, stderr=subprocess.STDOUT)

    def error(self) -> str | None:
        with open(self.path, encoding="utf-8", errors="replace") as file:
            file.seek(self._start)
            lines = [line.rstrip("\n") for line in file if line.startswith("error:")]
        return lines[-1] if lines else None


class Screen(Output):
    """Shows what the job says at once, all but its `error:` line: the tool that runs the job prints that at its end."""

    remedy = "run the command above by itself"

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._reader: threading.Thread | None = None

    def start(self, command: Sequence[str], shown: str, environment: Mapping[str, str]) -> subprocess.Popen[Any]:
        sys.stdout.flush()
        process = _popen(command, environment, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._pass_on, args=(process.stderr,), daemon=True)
        self._reader.start()
        return process

    def error(self) -> str | None:
        if self._reader is not None:
            self._reader.join(timeout=5)  # a worker that outlives the process may hold the pipe open
        return self._errors[-1] if self._errors else None

    def _pass_on(self, stream: Any) -> None:
        for line in io.TextIOWrapper(stream, encoding="utf-8", errors="replace"):
            if line.startswith("error:"):
                self._errors.append(line.rstrip("\n"))
            else:
                sys.stderr.write(line)
                sys.stderr.flush()
