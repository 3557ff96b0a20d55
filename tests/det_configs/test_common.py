"""det_configs/common: the protocols, the small recipe, and the recipe as detectron2's LazyConfig reads it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from det_configs.common.coco import PAPER_3X, PAPER_3X_BASE, PAPER_6X, PAPER_6X_BASE, VITDET, experiment
from det_configs.common.lazy import COCO_IMAGES, lazy_config
from det_configs.common.recipe import DetRecipe
from det_configs.common.tiny import TINY
from tools.detection.config import load_config

EPOCH = COCO_IMAGES // 16


def drops(recipe: DetRecipe, total_steps: int) -> list[int]:
    """Returns the steps after the warm-up at which the lr falls."""
    start = total_steps // 10
    factors = [recipe.lr_factor(step, total_steps) for step in range(start, total_steps)]
    return [start + i for i in range(1, len(factors)) if factors[i] < factors[i - 1]]


def test_the_longer_schedule_ends_as_the_published_one() -> None:
    for recipe, epochs in ((PAPER_3X, 36), (PAPER_6X, 72), (PAPER_3X_BASE, 36), (PAPER_6X_BASE, 72)):
        total = recipe.total_steps(EPOCH)
        assert total == epochs * EPOCH
        assert drops(recipe, total) == [total - 9 * EPOCH, total - 3 * EPOCH]
    for longer, short in ((PAPER_6X, PAPER_3X), (PAPER_6X_BASE, PAPER_3X_BASE)):
        assert dataclasses.replace(longer, epochs=36, milestones=short.milestones) == short


def test_vitdets_protocol_is_that_of_its_project() -> None:
    """The numbers of projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py: 184375 steps of 64 images."""
    assert drops(VITDET, 184375) == [163889, 177546]
    assert VITDET.lr_factor(249, 184375) == 1.0 > VITDET.lr_factor(248, 184375)
    assert (VITDET.batch_size, VITDET.layer_decay, VITDET.weight_decay, VITDET.img_size) == (64, 0.7, 0.1, 1024)
    arguments = VITDET.encoder_arguments()
    assert arguments["window_size"] == 14 and arguments["use_rel_pos"] and not arguments["use_class_token"]
    assert set(range(12)) - set(arguments["window_block_indexes"]) == {2, 5, 8, 11}  # four global blocks


def test_an_experiment_is_its_protocol_but_for_what_it_names() -> None:
    recipe, *lazy = experiment(PAPER_3X, encoder="vit_base", cascade=True)
    assert recipe == dataclasses.replace(PAPER_3X, encoder="vit_base", cascade=True)
    assert len(lazy) == 5
    assert PAPER_3X.encoder == "vit_small" and not PAPER_3X.cascade
    with pytest.raises(TypeError, match="encodre"):
        experiment(PAPER_3X, encodre="vit_base")


def test_without_detectron2_a_config_is_its_recipe_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    assert lazy_config(PAPER_3X) == (None,) * 5


def test_detectron2s_trainer_gets_the_recipes_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """fvcore's class has no method of its own that is used, so any class does in its place."""
    for name in ("fvcore", "fvcore.common", "fvcore.common.param_scheduler"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    stand_in: Any = SimpleNamespace(ParamScheduler=object)
    monkeypatch.setitem(sys.modules, "fvcore.common.param_scheduler", stand_in)
    monkeypatch.delitem(sys.modules, "det_configs.common.lazy_schedule", raising=False)
    module = importlib.import_module("det_configs.common.lazy_schedule")
    del sys.modules["det_configs.common.lazy_schedule"]  # monkeypatch would put the one with the stand-in back
    for recipe in (PAPER_3X, TINY):
        schedule = module.RecipeSchedule(dataclasses.asdict(recipe), max_iter=90)
        assert schedule.recipe == recipe
        assert [schedule(step / 90) for step in range(90)] == [recipe.lr_factor(step, 90) for step in range(90)]


@pytest.mark.parametrize("name", ["demo", "nuclei_tiny", "coco_tiny"])
def test_the_small_configs_stay_small(name: str) -> None:
    """512 RoIs or ViTDet's box head cost 20 s per step on two cores."""
    recipe = load_config(f"det_configs/{name}.py")
    assert (recipe.encoder, recipe.box_head, recipe.batch_size) == (TINY.encoder, "2fc", TINY.batch_size)
    assert recipe.rois_per_image <= TINY.rois_per_image and recipe.img_size <= TINY.img_size
    assert recipe.total_steps(20) * recipe.out_channels <= 200 * TINY.out_channels
