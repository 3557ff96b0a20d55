"""The training loop and its hook: what mmengine's own leave out, so that a stop and a resume change nothing.

mmengine re-reads all past batches on a resume and restores no random state. Here batches are sought, and each update
seeds torch from its number, as in the project's other trainers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from pretrain.training.distributed import agree, mean_over_ranks
from pretrain.training.loader import step_batches
from pretrain.training.loop import step_seed
from pretrain.training.metrics import MetricsLog, ProgressLine
from pretrain.training.schedule import warmup_poly
from pretrain.training.signals import StopSignals
from tools.finetuning.best import is_recorded
from tools.segmentation import checkpoints
from tools.segmentation.processes import unwrapped


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Forward passes under bfloat16 autocast, on a GPU or a CPU; weights and optimizer stay in float32.

    mmengine's AmpOptimWrapper refuses CPUs and scales the loss, which bfloat16 does not need.
    """

    def optim_context(self, model: torch.nn.Module) -> Any:
        """Returns the context of the forward pass."""
        device = next(model.parameters()).device.type
        return _Both(super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16))


class _Both:
    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def __enter__(self) -> None:
        self.first.__enter__()
        self.second.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.second.__exit__(*error)
        self.first.__exit__(*error)


@LOOPS.register_module()
class SeekingTrainLoop(IterBasedTrainLoop):
    """mmengine's loop with batches that can be entered at any update, lr from a pure function, and seeded updates.

    Args:
        runner: the runner.
        dataloader: a loader whose dataset is a `SegPairs`; its own order is not used.
        max_iters: updates of the whole run.
        batch_size: images an update.
        workers: data processes.
        seed: of order, augmentation and updates.
        warmup_fraction: share of the updates with rising lr.
        power: of the polynomial decay to 0 that follows.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any],
        max_iters: int,
        batch_size: int,
        workers: int,
        seed: int,
        warmup_fraction: float,
        power: float,
    ) -> None:
        super().__init__(runner, dataloader, max_iters=max_iters, val_interval=max_iters + 1)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.warmup_steps, self.power = round(warmup_fraction * max_iters), power

    def run(self) -> torch.nn.Module:
        """Trains from the runner's current update to the last."""
        groups = self.runner.optim_wrapper.optimizer.param_groups
        for group in groups:
            group.setdefault("peak_lr", group["lr"])  # a resumed optimizer has it already
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        dataset = self.dataloader.dataset
        batches = step_batches(
            dataset,
            num_items=len(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=self._iter,
            total_steps=self._max_iters,
            workers=self.workers,
            rank=self.runner.rank,
            world_size=self.runner.world_size,
            collate_fn=pseudo_collate,
        )
        self.runner.model.train()
        for batch in batches:
            factor = warmup_poly(self._iter, self._max_iters, self.warmup_steps, self.power)
            for group in groups:
                group["lr"] = group["peak_lr"] * factor
            torch.manual_seed(step_seed(self.seed, self._iter, self.runner.rank))
            self.run_iter(batch)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


class RunHook(Hook):
    """Stops on a loss that is not finite, logs, saves, evaluates; obeys SIGTERM and SIGINT after the running update.

    Every process has one; the first alone writes.

    Args:
        folder: of the run: metrics.jsonl, TensorBoard events, checkpoints/.
        stop: signals received.
        batch_size, steps_per_epoch, total_steps, log_every, save_every, eval_every: as in the config.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        folder: Path,
        stop: StopSignals,
        *,
        batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
        log_every: int,
        save_every: int,
        eval_every: int | None = None,
    ) -> None:
        self.folder, self.stop = folder, stop
        self.batch_size, self.steps_per_epoch, self.total_steps = batch_size, steps_per_epoch, total_steps
        self.log_every, self.save_every, self.eval_every = log_every, save_every, eval_every

    def before_train(self, runner: Any) -> None:
        """Opens log and progress; from here on a signal waits for the running update."""
        if runner.rank == 0:
            self.log = MetricsLog(self.folder, runner.iter)
            self.progress = ProgressLine(self.total_steps, runner.iter, "train").__enter__()
        self.stop.graceful = True
        if self._evaluation_due(runner.iter) and not is_recorded(self.folder, runner.iter):
            self._evaluate(runner, runner.iter)  # the run was stopped before it could be made
        self.waiting, self.since, self.images = 0.0, time.monotonic(), 0
        self.ended = self.since

    def close(self) -> None:
        """Closes log and progress, also after an error."""
        self.stop.graceful = False
        if hasattr(self, "log"):
            self.progress.__exit__()
            self.log.close()
            del self.log

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Takes the time that was spent waiting for the batch."""
        self.waiting += time.monotonic() - self.ended

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Checks, logs, saves, stops."""
        step = runner.iter + 1
        norms = runner.message_hub.log_scalars.get("train/grad_norm")
        grad_norm = torch.as_tensor(norms.current() if norms is not None else 0.0, device=outputs["loss"].device)
        received = agree(outputs["loss"], grad_norm, self.stop.received, runner.iter)
        self.images += self.batch_size
        if step % self.log_every == 0 or step == self.total_steps:
            values = dict(zip(outputs, mean_over_ranks([value.float() for value in outputs.values()]), strict=True))
            if runner.rank == 0:
                lr = max(group["lr"] for group in runner.optim_wrapper.optimizer.param_groups)
                self._write(step, values, lr, None if norms is None else float(grad_norm))
        if runner.rank == 0:
            self.progress.advance(step)
        due = self._evaluation_due(step)
        if runner.rank == 0 and (step % self.save_every == 0 or step == self.total_steps or received or due):
            # Also before an evaluation, which takes long: what came before it is not lost.
            checkpoints.save(runner, self.folder / "checkpoints", step)
        if due and not received:
            started = time.monotonic()
            self._evaluate(runner, step)
            self.since += time.monotonic() - started
        if received and step < self.total_steps:
            raise SystemExit(128 + received)
        self.ended = time.monotonic()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Obeys a signal in the middle of an evaluation: the state is saved, and a resume evaluates again."""
        if self.stop.received:
            raise SystemExit(128 + self.stop.received)

    def _evaluation_due(self, step: int) -> bool:
        """Returns whether an evaluation belongs after `step` updates; the one after the last gives results.json."""
        return self.eval_every is not None and 0 < step < self.total_steps and step % self.eval_every == 0

    def _evaluate(self, runner: Any, step: int) -> None:
        results = runner.val_loop.run()
        runner.model.train()
        if runner.rank != 0:
            return
        best = checkpoints.record_best(self.folder, step, results, unwrapped(runner.model))
        self.log.scalars("val", {name: results[name] for name in ("mIoU", "mAcc", "aAcc")}, step)
        shown = "undefined" if results["mIoU"] is None else f"{results['mIoU']:.2f}"
        sys.stdout.write(f"step {step}: mIoU {shown}, {'the best' if best else 'not the best'} so far\n")

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint one that torch reads safely."""
        checkpoints.leave_histories_out(checkpoint)

    def _write(self, step: int, values: dict[str, float], lr: float, grad_norm: float | None) -> None:
        now = time.monotonic()
        speed, data_share = self.images / (now - self.since), self.waiting / (now - self.since)
        accuracy = values.get("decode.acc_seg")
        entry = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "images": step * self.batch_size,
            "loss": values["loss"],
            "pixel_accuracy": None if accuracy is None else accuracy / 100,
            "lr": lr,
            "grad_norm": grad_norm,
            "images_per_second": speed,
        }
        self.log.write(entry, {"data_wait": data_share})
        self.progress.log(step, {name: entry[name] for name in ("loss", "pixel_accuracy", "lr")}, speed, data_share)  # type: ignore[misc]
        self.waiting, self.since, self.images = 0.0, now, 0

    def after_train(self, runner: Any) -> None:
        """Closes; a signal that came with the last update takes effect now, everything is saved."""
        self.close()
        if self.stop.received:
            raise SystemExit(128 + self.stop.received)


class TestProgressHook(Hook):
    """A line every few seconds of evaluation, with the time left."""

    __test__ = False  # no test class of pytest

    def __init__(self, seconds: float = 10.0, write: Callable[[str], Any] = sys.stdout.write) -> None:
        self.seconds, self.write = seconds, write

    def before_test(self, runner: Any) -> None:
        """Starts the clock."""
        self.started = self.shown = time.monotonic()
        self.is_main = runner.rank == 0

    before_val = before_test

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Writes the line when it is time."""
        self._show(batch_idx + 1, len(runner.test_dataloader))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Writes the line when it is time."""
        self._show(batch_idx + 1, len(runner.val_dataloader))

    def _show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown > self.seconds and self.is_main:
            self.shown = now
            self.write(f"evaluated {done}/{total}  {(now - self.started) / done * (total - done):.0f} s left\n")
