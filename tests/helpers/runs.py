"""Runs of tools in processes of their own, and what they leave."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any


def kill_when(process: subprocess.Popen[Any], folder: Path, pattern: str, seconds: float = 200.0) -> None:
    """Sends SIGKILL as soon as `folder` has a file of the pattern; fails where the process ends without one."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(folder.glob(pattern)), f"no {pattern} in {folder}"


def strict_json(path: Path) -> Any:
    """Returns the content of a JSON file; NaN and Infinity, which are not JSON, fail."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)
