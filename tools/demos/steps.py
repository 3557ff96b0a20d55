"""Runs the demo's steps as processes: signals passed on, warnings shown, the error line kept for the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = "seconds.json"


class StepError(Exception):
    """A step that did not succeed.

    Attributes:
        code: exit code to pass on.
        line: the step's own `error: ...` line, or None after a signal that was meant to stop it.
    """

    def __init__(self, code: int, line: str | None) -> None:
        super().__init__(line)
        self.code, self.line = code, line


class Steps:
    """The steps of a demo, with the wall time of each over all attempts in `output/seconds.json`."""

    def __init__(self, output: Path, debug: bool = False) -> None:
        self.output, self.debug = output, debug
        self.seconds: dict[str, float] = _read_json(output / SECONDS)

    def run(self, name: str, artefact: str, tool: str, *arguments: str) -> Path:
        """Returns the folder `output/name` of a finished step; runs or continues `tool` only if it is not finished.

        Args:
            name: the step's folder below the demo's.
            artefact: the file that the tool ends with.
            tool: such as "train_det.py"; `--output` and `--resume` are added here.
            *arguments: everything else.

        Raises:
            StepError: the tool failed or was stopped.
        """
        folder = self.output / name
        if (folder / artefact).exists():
            return folder
        resume = ["--resume"] if (folder / "config.json").exists() else []
        started = time.monotonic()
        try:
            self._tool(tool, *arguments, "--output", str(folder), *resume)
        finally:
            self.add_seconds(name, time.monotonic() - started)
        return folder

    def predict(self, folder: Path, tool: str, *arguments: str, pictures: Path) -> None:
        """Draws what a finished run predicts for a folder of pictures, unless that was done before."""
        if not (folder / "predictions").is_dir() or len(list((folder / "predictions").iterdir())) < len(
            list(pictures.iterdir())
        ):
            self._tool(tool, *arguments, "--output", str(folder), "--predict", str(pictures))

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds to the time of a step and writes it down."""
        from pretrain.training.run_folder import write_json

        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        write_json(self.output / SECONDS, self.seconds)

    def _tool(self, tool: str, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / "tools" / tool), *arguments, *(["--debug"] if self.debug else [])]
        sys.stdout.write(f"\n$ python tools/{tool} {' '.join(arguments)}\n")
        sys.stdout.flush()
        code, line = run_process(command)
        if code == 0:
            return
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise StepError(code, None)
        raise StepError(
            code, line or f"error: tools/{tool} ended with exit code {code}: run the command above by itself"
        )


def run_process(command: list[str]) -> tuple[int, str | None]:
    """Returns exit code (128 + n after signal n) and the last `error:` line on stderr, which is not shown.

    Everything else on stderr is passed on. SIGINT and SIGTERM go to the process once, which then saves and ends.
    """
    # A process group of its own: a terminal's Ctrl-C would otherwise reach it twice, and the second means "at once".
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    )
    errors: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=_pass_on, args=(process.stderr, errors), daemon=True)

    def forward(number: int, frame: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        reader.start()
        code = process.wait()
        reader.join(timeout=5)  # a worker that outlives the process may hold the pipe open
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), (errors[-1] if errors else None)


def _pass_on(stream: IO[str], errors: list[str]) -> None:
    for line in stream:
        if line.startswith("error:"):
            errors.append(line.rstrip("\n"))
        else:
            sys.stderr.write(line)
            sys.stderr.flush()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
