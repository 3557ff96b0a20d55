"""The engines a detector can be built with. Free of torch and detectron2 until one is built."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.errors import UserError, check_choice

if TYPE_CHECKING:
    from tools.detection.detector import Detector

ENGINES = ("auto", "detectron2", "torchvision")


def choose_engine(name: str, recipe: DetRecipe) -> str:
    """Returns the engine that "auto" stands for (detectron2 where it is installed), or the one named.

    Raises:
        ValueError: unknown, not installed, or unable to build the recipe.
    """
    check_choice("engine", name, ENGINES, "--engine")
    installed = find_spec("detectron2") is not None
    if name == "auto":
        name = "detectron2" if installed else "torchvision"
    if name == "detectron2" and not installed:
        raise UserError(
            "--engine detectron2: detectron2 is not installed (PyPI does not hold it): install it from its repository, "
            "or use --engine torchvision"
        )
    if name == "torchvision" and recipe.cascade:
        raise UserError(
            "cascade=true needs --engine detectron2 (torchvision has no Cascade R-CNN): install detectron2 from its "
            "repository, or use cascade=false"
        )
    return name


def build_detector(
    engine: str,
    recipe: DetRecipe,
    num_classes: int,
    weights: str | Path | None = None,
    encoder_config: dict[str, Any] | None = None,
) -> Detector:
    """Returns the detector of a recipe, built with an engine.

    Args:
        engine: of `choose_engine`.
        weights: an encoder file; None for random initialisation.
        encoder_config: constructor arguments of the encoder of a trained detector: nothing is loaded, its own weights
            follow.

    Raises:
        ValueError: the weights do not suit the recipe.
    """
    build = import_module(f"tools.detection.{engine}_engine").build_detector
    return build(recipe, num_classes, weights, encoder_config)
