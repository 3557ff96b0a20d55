"""The one training loop: step, log, save, stop, resume. Every trainer of the project runs it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.training.checkpoints import newest_checkpoint, restore, save_checkpoint
from pretrain.training.distributed import agree, mean_over_ranks
from pretrain.training.ema import WeightAverage
from pretrain.training.metrics import MetricsLog, ProgressLine, shown
from pretrain.training.run_folder import CHECKPOINTS, RunFolder
from pretrain.training.signals import StopSignals

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Loop:
    """How long, how often, how clipped.

    Attributes:
        total_steps: updates of the whole run, resumed parts included.
        batch_size: images an update, over all processes and accumulated micro-batches.
        steps_per_epoch: updates an epoch.
        clip_grad: largest gradient norm, or None.
        accumulate: micro-batches an update.
        save_every: updates between checkpoints.
        log_every: updates between log lines.
        eval_every: updates between evaluations, or None.
        monitor_every: updates between two looks of the monitor, or None.
        seed: of everything random in a step.
    """

    total_steps: int
    batch_size: int
    steps_per_epoch: int
    clip_grad: float | None = None
    accumulate: int = 1
    save_every: int = 1000
    log_every: int = 50
    eval_every: int | None = None
    monitor_every: int | None = None
    seed: int = 0


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the torch seed of one update: with it, no random state needs to be stored for an exact resume."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


def fit(
    fabric: Fabric,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loop: Loop,
    lr_at: Callable[[int], float],
    batches: Callable[[int], Iterator[Any]],
    folder: RunFolder,
    metric_names: Sequence[str],
    title: str = "train",
    average: WeightAverage | None = None,
    evaluate: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    weight_decay_at: Callable[[int], float] | None = None,
    monitor: Callable[[], dict[str, float | None]] | None = None,
) -> None:
    """Trains `method` in place from the folder's newest checkpoint, or from the start, to `loop.total_steps`.

    The result depends on the seed, the data, the recipe and the number of threads; not on logging, saving, workers or
    on how often the run was stopped and resumed.

    Args:
        fabric: device, precision, processes.
        method: `method(batch)` returns named 0-dim tensors, "loss" among them.
        optimizer: its groups' initial lr are the peak values.
        loop: length and intervals.
        lr_at: factor on the peak lr of each group for an update (0-based).
        batches: `batches(start_step)` yields this rank's micro-batches from that update on.
        folder: where checkpoints, metrics.jsonl and TensorBoard events go.
        metric_names: entries of the method's result that are logged; a missing one is logged as null.
        title: in front of the progress bar.
        average: takes in the weights after each update.
        evaluate: called in every process with the finished updates, `loop.eval_every` of them apart and not after the
            last.
        after_step: called with the number of finished updates after each, before the state is saved.
        weight_decay_at: weight decay for an update (0-based) of the groups that have one.
        monitor: returns what goes into monitor.jsonl after updates `loop.monitor_every` apart and after the last;
            called in the main process alone, before the state is saved: a resume finds each line it needs.

    Raises:
        ValueError: the loss or gradient is not finite (the update is not made, earlier checkpoints stay).
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the state is saved first.
    """
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    checkpoints = folder.path / CHECKPOINTS
    start_step = 0
    if folder.resumed and (found := newest_checkpoint(checkpoints, warn=fabric.is_global_zero)):
        restore(found[1], method, optimizer, average)
        start_step = found[0]["step"]
    folder.start()
    model, wrapped_optimizer = fabric.setup(method, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    method.train()
    log = MetricsLog(folder.path, start_step) if fabric.is_global_zero else None
    progress = ProgressLine(loop.total_steps, start_step, title) if fabric.is_global_zero else None
    saved_step = start_step

    def save(step: int) -> None:
        nonlocal saved_step
        if fabric.is_global_zero and step != saved_step:
            save_checkpoint(checkpoints, step, method, optimizer, average)
        saved_step = step

    stop = StopSignals()
    clock = _Clock()
    data = batches(start_step) if start_step < loop.total_steps else iter(())
    try:
        if progress:
            progress.__enter__()
        with stop:
            stop.graceful = True
            for step in range(start_step, loop.total_steps):
                factor = lr_at(step)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * factor
                    if weight_decay_at is not None and group["weight_decay"]:
                        group["weight_decay"] = weight_decay_at(step)
                torch.manual_seed(step_seed(loop.seed, step, fabric.global_rank))
                metrics: dict[str, Tensor] = {}
                for micro in range(loop.accumulate):
                    with clock.waiting():
                        batch = fabric.to_device(next(data))
                    with fabric.no_backward_sync(model, enabled=micro < loop.accumulate - 1):  # type: ignore[arg-type]
                        values = model(batch)
                        fabric.backward(values["loss"] / loop.accumulate)
                    for name, value in values.items():
                        metrics[name] = metrics.get(name, 0.0) + value.detach().float() / loop.accumulate
                grad_norm = torch.nn.utils.clip_grad_norm_(parameters, loop.clip_grad or math.inf)
                done = step + 1
                stop_now = agree(metrics["loss"], grad_norm, stop.received, step)
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update(method, done)
                if after_step is not None:
                    after_step(done)
                clock.images += loop.batch_size
                place = {"step": done, "epoch": done / loop.steps_per_epoch, "images": done * loop.batch_size}
                if done % loop.log_every == 0 or done == loop.total_steps:
                    names = [name for name in metric_names if name in metrics]
                    means = dict(zip(names, mean_over_ranks([metrics[n] for n in names]), strict=True))
                    if log and progress:
                        entry = {
                            **place,
                            **{name: means.get(name) for name in metric_names},
                            "lr": max(group["lr"] for group in optimizer.param_groups),
                            "grad_norm": float(grad_norm),
                        }
                        speed, data_share = clock.lap()
                        log.write({**entry, "images_per_second": speed}, {"data_wait_share": data_share})
                        progress.log(done, {name: means.get(name) for name in metric_names}, speed, data_share)
                if progress:
                    progress.advance(done)
                if monitor is not None and log and progress and _is_due(done, loop.monitor_every, loop.total_steps):
                    with clock.stopped():
                        seen = monitor()
                    log.write_monitor({**place, **seen})
                    progress.note(f"monitor at step {done}: {shown(seen)}")
                if done % loop.save_every == 0 or done == loop.total_steps or stop_now:
                    save(done)
                due = loop.eval_every is not None and done % loop.eval_every == 0 and done < loop.total_steps
                if evaluate is not None and due and not stop_now:
                    save(done)  # an evaluation takes long: what came before it is not lost
                    evaluate(done)
                    clock.lap()
                if stop_now and done < loop.total_steps:
                    raise SystemExit(128 + stop_now)
    finally:
        if progress:
            progress.__exit__()
        if log:
            log.close()
    fabric.barrier()


def _is_due(done: int, every: int | None, total_steps: int) -> bool:
    return every is not None and (done % every == 0 or done == total_steps)


class _Clock:
    """Images a second and the share of time spent waiting for data since the last lap."""

    def __init__(self) -> None:
        self.images = 0
        self._waited = 0.0
        self._start = time.monotonic()

    def waiting(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._wait_start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._wait_start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def lap(self) -> tuple[float, float]:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        result = self.images / elapsed, self._waited / elapsed
        self.images, self._waited, self._start = 0, 0.0, time.monotonic()
        return result
