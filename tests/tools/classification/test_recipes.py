"""Classification recipes: the paper's App. E, what overrides do, and values that cannot work."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from tools.classification.probe_recipe import MIN_STEPS, ProbeRecipe
from tools.classification.recipes import RECIPES, get_recipe

LARGE, TINY_SETS = ("inat18", "inat19", "food101"), ("cars", "clipart", "painting", "sketch")


@pytest.mark.parametrize("name", [*LARGE, *TINY_SETS])
def test_the_papers_settings(name: str) -> None:
    recipe = get_recipe(name)
    assert (recipe.img_size, recipe.epochs, recipe.batch_size, recipe.weight_decay) == (224, 300, 1024, 0.05)
    assert (recipe.label_smoothing, recipe.drop_path, recipe.flip) == (0.1, 0.1, 0.5)
    assert (recipe.mixup, recipe.cutmix, recipe.color_jitter, recipe.test_crop) == (0.8, 1.0, 0.4, 0.875)
    assert not recipe.jitters  # RandAugment takes its place, as in timm
    own = (recipe.lr, recipe.layer_decay, recipe.randaugment, recipe.randaugment_std)
    assert own == ((1.4e-4, 1.0, 7, 0.5) if name in LARGE else (4e-3, 0.65, 9, 0.5))
    assert (recipe.repeats > 1) == (name in LARGE)
    assert recipe.warmup_fraction * 300 == pytest.approx(5 if name in LARGE else 60)


def test_the_schedule_is_a_warm_up_and_a_cosine() -> None:
    recipe = get_recipe("cars")
    factors = [recipe.lr_factor(step, 300) for step in range(300)]
    assert factors[0] == pytest.approx(1 / 60) and factors[59] == 1.0
    assert factors[60 + 120] == pytest.approx((1 + 1e-6 / 4e-3) / 2)  # half way down
    assert recipe.lr * factors[299] < 3e-6


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_scales_with_the_batch(name: str) -> None:
    recipe = get_recipe(name)
    assert type(recipe)(**dataclasses.asdict(recipe)) == recipe
    doubled = recipe.override({"batch_size": 2 * recipe.batch_size})
    assert doubled.lr == pytest.approx(2 * recipe.lr)
    assert recipe.override({"batch_size": 2, "lr": 0.5}).lr == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixing": 1.0}, "did you mean 'mixup'"),
        ({"lr": 0.0}, "--lr 0.0 must be above 0"),
        ({"drop_path": 1.0}, "--drop-path 1.0 must be at least 0 and at most 0.99"),
        ({"repeats": 0}, "--repeats 0 must be at least 1"),
        ({"batch_size": 5}, "5 is odd"),
        ({"batch_size": 6, "accumulate": 4}, "must be a multiple of --accumulate 4"),
        ({"epochs": 1, "steps": 1}, "exclude each other"),
        ({"model": "vit_smal"}, "did you mean 'vit_small'"),
        ({"precision": "16"}, "unknown precision '16'"),
    ],
)
def test_values_that_cannot_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_recipe("cars").override(values)


def test_a_batch_may_be_odd_where_nothing_is_mixed() -> None:
    assert get_recipe("cars").override({"batch_size": 5, "mixup": 0.0, "cutmix": 0.0}).batch_size == 5


def test_layers_to_probe() -> None:
    assert ProbeRecipe().indices(3) == (0, 1, 2)
    assert ProbeRecipe(layers="11, 0,5,5").indices(12) == (0, 5, 11)
    with pytest.raises(ValueError, match="the encoder has blocks 0 to 11"):
        ProbeRecipe(layers="12").indices(12)
    with pytest.raises(ValueError, match="must be all, or numbers"):
        ProbeRecipe(layers="last")
    with pytest.raises(ValueError, match="nothing to measure"):
        ProbeRecipe(knn=0, linear=False)
    assert ProbeRecipe().linear_steps(2) == MIN_STEPS and ProbeRecipe().linear_steps(50) == 5000
    assert ProbeRecipe().override({"steps": 7}).linear_steps(2) == 7


def test_recipes_and_options_do_not_import_torch() -> None:
    names = "recipes, probe_recipe, data, layouts, cars"
    code = f"import sys; from tools.classification import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
