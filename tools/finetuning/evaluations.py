"""The evaluations of a training: on its way, each a line and maybe the best model so far, and the one that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.training.distributed import share_buffers
from pretrain.training.run_folder import RunFolder, flatten
from splitmask_backbones.run_files import BEST_MODEL
from tools import cli
from tools.finetuning.best import record_evaluation
from tools.finetuning.model_files import save_model
from tools.finetuning.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn


def measured(task: Task, fabric: Fabric, model: nn.Module, folder: RunFolder, *, final: bool) -> dict[str, Any] | None:
    """Evaluates one and the same model in all processes, the one that is kept; as `Task.measure`."""
    share_buffers(model)
    return task.measure(fabric, model, folder, final=final)


class Evaluations:
    """Evaluates the model that a training keeps; to be called in all processes.

    Args:
        task: whose training it is.
        fabric: device and processes.
        folder: of the run.
        model: that is kept: the averaged one where the recipe has an average.
        config: what a saved model says of itself.
    """

    def __init__(self, task: Task, fabric: Fabric, folder: RunFolder, model: nn.Module, config: dict[str, Any]) -> None:
        self.task, self.fabric, self.folder, self.model, self.config = task, fabric, folder, model, config

    def after(self, step: int) -> dict[str, Any] | None:
        """Returns what the model reaches after `step` steps, in the main process; keeps it if it is the best so far."""
        results = measured(self.task, self.fabric, self.model, self.folder, final=False)
        if self.folder.is_main and results is not None and self.task.recipe.eval_every:
            path = self.folder.path
            best = record_evaluation(
                path,
                step,
                results,
                keep=lambda: save_model(path / BEST_MODEL, self.model, self.config),
                score=self.task.score,
            )
            cli.say(self.folder, f"step {step}: the best so far" if best else f"step {step}: not the best")
        return results

    def scalars(self, step: int) -> dict[str, float | None]:
        """Returns `after` as `fit` takes it: flat, and without the numbers of single classes."""
        found = flatten(self.after(step) or {})
        return {name: value for name, value in found.items() if not name.startswith("per_class.")}

    def at_the_end(self, step: int) -> dict[str, Any] | None:
        """Returns what the trained model reaches, by the evaluation that counts."""
        results = None
        if self.task.recipe.eval_every or not self.task.final_differs:
            results = self.after(step)
        if self.task.final_differs:
            results = measured(self.task, self.fabric, self.model, self.folder, final=True)
        return results
