"""The values of a training loop: how long, how often, how clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.training.measuring import STEPS
from pretrain.training.options import RunOptions


@dataclass(frozen=True)
class Loop:
    """Length, intervals, clipping, seed.

    Attributes:
        total_steps: of the whole run, resumed parts included.
        batch_size: images per step, over all processes and accumulated micro-batches.
        steps_per_epoch: steps per epoch.
        clip_grad: largest gradient norm, or None.
        clip_per_parameter: whether that is the norm of each parameter's gradient.
        accumulate: micro-batches per step.
        save_every: steps between checkpoints.
        log_every: steps between log lines.
        eval_every: steps between evaluations, or None.
        monitor_every: steps between two looks of the monitor, or None.
        seed: of everything random in a step.
        stop_after: steps that are made of `total_steps`, in a rehearsal; None for all.
    """

    total_steps: int
    batch_size: int
    steps_per_epoch: int
    clip_grad: float | None = None
    clip_per_parameter: bool = False
    accumulate: int = 1
    save_every: int = 1000
    log_every: int = 50
    eval_every: int | None = None
    monitor_every: int | None = None
    seed: int = 0
    stop_after: int | None = None

    @classmethod
    def of(
        cls,
        recipe: Any,
        options: RunOptions,
        total_steps: int,
        steps_per_epoch: int,
        *,
        clip_per_parameter: bool = False,
        **intervals: Any,
    ) -> Loop:
        """Returns the loop of a recipe; intervals of 0 are none."""
        return cls(
            total_steps=total_steps,
            batch_size=recipe.batch_size,
            steps_per_epoch=steps_per_epoch,
            clip_grad=recipe.clip_grad or None,
            clip_per_parameter=clip_per_parameter,
            accumulate=recipe.accumulate,
            save_every=options.save_every,
            log_every=options.log_every,
            seed=recipe.seed,
            stop_after=STEPS if options.rehearse else None,
            **{name: steps or None for name, steps in intervals.items()},
        )

    @property
    def end(self) -> int:
        """Steps after which the training ends."""
        return min(self.total_steps, self.stop_after or self.total_steps)

    def evaluates_after(self, step: int) -> bool:
        """Returns whether an evaluation belongs after so many steps; the one after the last is the caller's."""
        return self.eval_every is not None and 0 < step < self.total_steps and step % self.eval_every == 0

    def monitors_after(self, step: int) -> bool:
        """Returns whether the monitor looks after so many steps."""
        return self.monitor_every is not None and (step % self.monitor_every == 0 or step == self.total_steps)
