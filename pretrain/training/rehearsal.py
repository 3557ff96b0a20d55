"""A rehearsal: the first steps of a run as it will be, timed, and what the whole run will take. It leaves no result."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pretrain.training.loop_config import Loop

from pretrain.training.evenly import evenly
from pretrain.training.measuring import STEPS, median_step, now, peak_memory
from pretrain.training.progress import duration
from pretrain.training.run_folder import RunFolder, write_json
from splitmask_backbones.run_files import CHECKPOINTS, REHEARSAL_RECORD

logger = logging.getLogger(__name__)
T = TypeVar("T")

NUM_IMAGES = {"train": 512, "val": 4}
"""Images of each split that a rehearsal looks at, at least."""


class Rehearsal:
    """Times one rehearsal from where it is made; each call from `begin_training` on counts the time since the last one.

    Attributes:
        num_images: images of each split of the whole run.
        num_used: those of the rehearsal.
    """

    def __init__(self) -> None:
        self.num_images: dict[str, int] = {}
        self.num_used: dict[str, int] = {}
        self._last = now()
        self._steps: list[float] = []
        self._evaluation = 0.0
        self._evaluated: Sequence[str] = ()
        self._save = 0.0
        self._checkpoint = 0

    def a_few(self, items: Sequence[T], split: str, batch_size: int) -> list[T]:
        """Returns some of the items of "train" or "val", evenly spread and in order; all of them where there are few.

        Args:
            batch_size: of the training, whose steps draw from what is left.
        """
        self.num_images[split] = len(items)
        few = evenly(len(items), max(NUM_IMAGES[split], STEPS * batch_size if split == "train" else 0))
        self.num_used[split] = len(few)
        return [items[index] for index in few]

    def begin_training(self) -> None:
        """Ends the set-up: the first step is about to begin."""
        self._setup = self._lap()

    def after_step(self, done: int) -> None:
        """Counts a step."""
        self._steps.append(self._lap())

    def end_training(self, folder: Path) -> None:
        """Counts the checkpoint that the training ended with, and removes it."""
        self._save = self._lap()
        checkpoints = folder / CHECKPOINTS
        self._checkpoint = sum(file.stat().st_size for file in checkpoints.glob("*") if file.is_file())
        shutil.rmtree(checkpoints, ignore_errors=True)

    def evaluated(self, splits: Sequence[str] = ("val",)) -> None:
        """Counts the evaluation that has just ended, of what is used of some splits."""
        self._evaluation, self._evaluated = self._lap(), splits

    def _lap(self) -> float:
        before, self._last = self._last, now()
        return self._last - before

    def record(
        self, tool: str, loop: Loop, fabric: Fabric, precision: str, num_evaluations: int, eval_every: int | None = None
    ) -> dict[str, Any]:
        """Returns what goes into rehearsal.json; its `whole_run` is what the function of that name returns.

        Args:
            tool: such as "train_det".
            num_evaluations: of the whole run.
            eval_every: steps between two of them, None for one at the end.
        """
        entry = {
            "rehearsal": "few steps, timed: no result",
            "tool": tool,
            "device": str(fabric.device),
            "processes": fabric.world_size,
            "precision": precision,
            "batch_size": loop.batch_size,
            "accumulate": loop.accumulate,
            "total_steps": loop.total_steps,
            "save_every": loop.save_every,
            "num_evaluations": num_evaluations,
            "eval_every": eval_every,
            "num_images": self.num_images,
            "steps": len(self._steps),
            "setup_seconds": self._setup,
            "step_seconds": median_step(self._steps),
            "first_step_seconds": self._steps[0] if self._steps else 0.0,
            "save_seconds": self._save,
            "checkpoint_bytes": self._checkpoint,
            "evaluated_images": sum(self.num_used[split] for split in self._evaluated),
            "images_per_evaluation": sum(self.num_images[split] for split in self._evaluated),
            "evaluation_seconds": self._evaluation,
            "peak_memory_bytes": peak_memory(),
        }
        return entry | {"whole_run": whole_run(entry)}

    def write(self, folder: RunFolder, entry: dict[str, Any]) -> None:
        """Writes rehearsal.json, and says what is in it; call it in the main process."""
        write_json(folder.path / REHEARSAL_RECORD, entry)
        for line in (*told(entry), f"wrote {folder.path / REHEARSAL_RECORD}: a rehearsal, no result"):
            logger.info(line)


def whole_run(
    entry: Mapping[str, Any], total_steps: int | None = None, batch_size: int | None = None
) -> dict[str, float]:
    """Returns the seconds that the whole run takes on the machine of a rehearsal: setup, training, saves, evaluations.

    Without `total_steps` and `batch_size` of the full run, those of the rehearsal count. A smaller batch is scaled by
    its images, which is too much where it leaves a GPU idle. `setup` is that of the images that were looked at.

    Args:
        entry: of `Rehearsal.record`.
        total_steps: of the run.
        batch_size: images of one of its steps.
    """
    steps, batch = total_steps or entry["total_steps"], batch_size or entry["batch_size"]
    per_image = entry["evaluation_seconds"] / max(1, entry["evaluated_images"])
    return {
        "setup": entry["setup_seconds"],
        "training": steps * entry["step_seconds"] * batch / entry["batch_size"],
        "saves": math.ceil(steps / max(1, entry["save_every"])) * entry["save_seconds"],
        "evaluations": entry["num_evaluations"] * entry["images_per_evaluation"] * per_image,
    }


def told(entry: Mapping[str, Any]) -> list[str]:
    """Returns a rehearsal in words."""
    parts = entry["whole_run"]
    shares = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return [
        f"rehearsed {entry['steps']} steps of {entry['batch_size']} images: {entry['step_seconds']:.2f} s a step (the "
        f"first {entry['first_step_seconds']:.2f} s), at most {entry['peak_memory_bytes'] / 1e9:.1f} GB of memory, "
        f"checkpoints of {entry['checkpoint_bytes'] / 1e9:.2f} GB",
        f"the whole run, {entry['total_steps']:,} steps: about {duration(sum(parts.values()))} on this machine "
        f"({shares})",
    ]
