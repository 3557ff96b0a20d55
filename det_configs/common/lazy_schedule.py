"""The recipe's learning-rate schedule as fvcore, and with it detectron2's trainer, calls it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler

from det_configs.common.recipe import DetRecipe


class RecipeSchedule(ParamScheduler):
    """Factor on the peak lr by the share of the run.

    Args:
        recipe: the values of a `DetRecipe`.
        max_iter: steps of the whole run.
    """

    def __init__(self, recipe: Mapping[str, Any], max_iter: int) -> None:
        # omegaconf hands over sequences of its own.
        values: dict[str, Any] = {
            k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in recipe.items()
        }
        self.recipe, self.max_iter = DetRecipe(**values), max_iter

    def __call__(self, where: float) -> float:
        """Returns the factor for the step at `where`, in [0, 1)."""
        return self.recipe.lr_factor(round(where * self.max_iter), self.max_iter)
