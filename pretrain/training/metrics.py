"""What a run tells while it trains: metrics.jsonl, TensorBoard, and progress with the time left on the screen."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pretrain.training.run_folder import strict_json
from splitmask_backbones.files import write_atomically

METRICS, MONITOR = "metrics.jsonl", "monitor.jsonl"
PLACE = ("step", "epoch", "images")
"""How far a run is: what every line of these files begins with."""


class JsonLines:
    """A file of one strict JSON object a step; after a resume, lines past the resumed step are taken out."""

    def __init__(self, path: Path, start_step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) <= start_step]
            write_atomically(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one line."""
        self._file.write(json.dumps(strict_json(entry), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricsLog:
    """metrics.jsonl, monitor.jsonl (where something is monitored) and TensorBoard events of one run."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._metrics = JsonLines(folder / METRICS, start_step)
        self._monitor_path, self._start_step = folder / MONITOR, start_step
        self._monitor = JsonLines(self._monitor_path, start_step) if self._monitor_path.exists() else None
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)

    def write(self, entry: dict[str, Any], extra: dict[str, float] | None = None) -> None:
        """Appends one line to metrics.jsonl; `extra` values go to TensorBoard only."""
        self._metrics.write(entry)
        for name, value in {**entry, **(extra or {})}.items():
            if name not in PLACE and value is not None:
                self._writer.add_scalar(f"train/{name}", value, entry["step"])

    def write_monitor(self, entry: dict[str, Any]) -> None:
        """Appends one line to monitor.jsonl."""
        if self._monitor is None:
            self._monitor = JsonLines(self._monitor_path, self._start_step)
        self._monitor.write(entry)
        self.scalars("monitor", {name: value for name, value in entry.items() if name not in PLACE}, entry["step"])

    def scalars(self, prefix: str, values: dict[str, float | None], step: int) -> None:
        """Writes values of something else than training, such as "val", to TensorBoard alone."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes all."""
        self._metrics.close()
        if self._monitor is not None:
            self._monitor.close()
        self._writer.close()


def _step_of(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill


def shown(values: dict[str, float | None]) -> str:
    """Returns the values that there are, with their names, for a line on the screen."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


class ProgressLine:
    """A rich progress bar on a terminal, one plain line a logged step elsewhere; both with the time left."""

    def __init__(self, total_steps: int, start_step: int, title: str) -> None:
        self._console = Console(file=sys.stdout)
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

    def log(self, step: int, values: dict[str, float | None], images_per_second: float, data_share: float) -> None:
        """Shows values, speed and the share of time spent waiting for data (in percent)."""
        detail = f"{shown(values)}  {images_per_second:.1f} images/s  data wait {100 * data_share:.0f} %"
        self._bar.update(self._task, detail=detail)
        if not self._console.is_terminal:
            per_step = (time.monotonic() - self._started) / max(1, step - self._start_step)
            left = time.strftime("%H:%M:%S", time.gmtime(per_step * (self._total_steps - step)))
            sys.stdout.write(f"step {step}/{self._total_steps}  {detail}  left {left}\n")
            sys.stdout.flush()
