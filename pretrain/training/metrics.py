"""What a run leaves of its numbers while it trains: metrics.jsonl, monitor.jsonl and TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import strict_json
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import METRICS_LOG, MONITOR_LOG

PLACE = ("step", "epoch", "images")
"""How far a run is: what every line of these files begins with."""


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of such a file, none where it is missing; one that was cut off by a kill is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def training_seconds(folder: Path) -> float | None:
    """Returns the seconds that a run has trained by its metrics.jsonl; None where that is not known.

    Waiting for data is in them; its set-up, its evaluations and the looks of its monitor are not.
    """
    seconds, before = 0.0, 0
    try:
        for entry in read_json_lines(folder / METRICS_LOG):
            seconds += (entry["images"] - before) / entry["images_per_second"]
            before = entry["images"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    return seconds if before else None


class JsonLines:
    """A file of one strict JSON object per step; after a resume, lines past the resumed step are taken out."""

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

        self._metrics = JsonLines(folder / METRICS_LOG, start_step)
        self._monitor_path, self._start_step = folder / MONITOR_LOG, start_step
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
