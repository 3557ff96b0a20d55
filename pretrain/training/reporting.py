"""What a training tells of its steps: metrics.jsonl, monitor.jsonl, TensorBoard events and the progress line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.training.distributed import mean_over_ranks
from pretrain.training.loop_config import Loop
from pretrain.training.metrics import MetricsLog
from pretrain.training.progress import Clock, ProgressLine, shown

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Reporter:
    """The main process writes and shows; the others take part in the means.

    Args:
        fabric: processes.
        folder: of the run.
        loop: length and intervals.
        start_step: finished steps of a run that is resumed.
        title: in front of the progress bar.
        metric_names: entries of a step's values that are logged; a missing one is logged as null.

    Attributes:
        clock: measures images a second, in every process.
    """

    def __init__(
        self, fabric: Fabric, folder: Path, loop: Loop, start_step: int, title: str, metric_names: Sequence[str]
    ) -> None:
        self._loop, self._metric_names = loop, metric_names
        is_main = fabric.is_global_zero
        self._log = MetricsLog(folder, start_step) if is_main else None
        self._progress = ProgressLine(loop.end, start_step, title) if is_main else None
        self.clock = Clock()  # the last: what was opened above is no step's time

    def __enter__(self) -> Reporter:
        if self._progress:
            self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.__exit__()
        if self._log:
            self._log.close()

    def note(self, text: str) -> None:
        """Shows a line."""
        if self._progress:
            self._progress.note(text)

    def _place(self, step: int) -> dict[str, float]:
        return {"step": step, "epoch": step / self._loop.steps_per_epoch, "images": step * self._loop.batch_size}

    def step(self, step: int, values: dict[str, Tensor], optimizer: torch.optim.Optimizer, factor: float) -> None:
        """Logs a step where one is due.

        Args:
            step: finished ones.
            values: of `train_step`.
            optimizer: its groups have their peak lr as "peak_lr".
            factor: of the step on the peak lr.
        """
        self.clock.images += self._loop.batch_size
        if step % self._loop.log_every == 0 or step == self._loop.end:
            names = [name for name in self._metric_names if name in values]
            means = dict(zip(names, mean_over_ranks([values[name] for name in names]), strict=True))
            if self._log and self._progress:
                speed, data_share = self.clock.lap()
                entry: dict[str, Any] = self._place(step) | {name: means.get(name) for name in self._metric_names}
                lr = max(group["peak_lr"] * factor for group in optimizer.param_groups)
                entry |= {"lr": lr, "grad_norm": float(values["grad_norm"]), "images_per_second": speed}
                self._log.write(entry, {"data_wait_share": data_share})
                self._progress.log(entry, data_share)
        if self._progress:
            self._progress.advance(step)

    def look(self, step: int, monitor: Callable[[], dict[str, float | None]]) -> None:
        """Looks with the monitor, which only the main process does, and logs what it saw."""
        if self._log:
            with self.clock.stopped():
                seen = monitor()
            self._log.write_monitor({**self._place(step), **seen})
            self.note(f"monitor at step {step}: {shown(seen)}")

    def evaluation(self, step: int, found: dict[str, float | None] | None) -> None:
        """Logs an evaluation; the time that it took is not the steps'."""
        if self._log and found:
            self._log.scalars("val", found, step)
        self.clock.lap()
