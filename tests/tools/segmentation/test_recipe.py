"""Configs and what a run records of them: values refused at once, tuples and numbers that stay what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine", reason="the extra 'segmentation' is not installed")

from tools.segmentation.config import config_path, derive
from tools.segmentation.recipe import SegRecipe, tuple_keys, with_tuples


def demo() -> SegRecipe:
    return SegRecipe.load(config_path("demo"))


def recorded(recipe: SegRecipe) -> SegRecipe:
    record = recipe.values() | {"free": dict.fromkeys(("save_every", "log_every"), 5)}
    record["free"] |= {"eval_every": None, "visualizer": None, "tuples": tuple_keys(recipe.values()["recipe_values"])}
    return SegRecipe.recorded(json.loads(json.dumps(record)))


@pytest.mark.parametrize("stride", ["341", "0", "-0.5"])
def test_a_stride_in_pixels_is_refused_before_the_training(stride: str) -> None:
    with pytest.raises(ValueError, match="slide_stride=.* must be a share of the window"):
        demo().override({"overrides": [f"slide_stride={stride}"]})
    assert demo().override({"overrides": ["slide_stride=1"]}).config["slide_stride"] == 1


def test_tuples_and_lists_of_a_config_come_back_as_they_were() -> None:
    recipe = demo()
    flip = {"type": "RandomFlip", "prob": [0.25, 0.25], "direction": ["horizontal", "vertical"], "scale": (3, 4)}
    recipe.config["train_pipeline"].append(flip)
    again = recorded(recipe)
    assert again.config["train_pipeline"] == recipe.config["train_pipeline"]
    assert type(again.config["train_pipeline"][-1]["prob"]) is list
    assert type(again.config["train_pipeline"][-1]["scale"]) is tuple
    lists: Any = {"a": [[1, 2], ["x"]], "b": {"c": [0.5, 2.0]}}
    assert with_tuples(lists, ["b.c"]) == {"a": [[1, 2], ["x"]], "b": {"c": (0.5, 2.0)}}


def test_a_float_given_as_a_whole_number_stays_a_float() -> None:
    recipe = demo().override({"overrides": ["schedule.warmup_fraction=0"]})
    assert type(recipe.config["schedule"]["warmup_fraction"]) is float
    assert recorded(recipe).override({"overrides": ["schedule.warmup_fraction=0.0"]}).values() == recipe.values()


@pytest.mark.parametrize(("power", "expected"), [("1", 0.5), ("2", 0.25)])
def test_the_lr_falls_with_the_schedules_power(power: str, expected: float) -> None:
    recipe = demo().override({"overrides": [f"schedule.power={power}", "schedule.warmup_fraction=0"]})
    assert recipe.lr_factor(50, 100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "match"),
    [({"type": "DiceLoss"}, "loss_decode is DiceLoss"), ({"type": "CrossEntropyLoss", "use_sigmoid": True}, "softmax")],
)
def test_class_weights_replace_no_other_loss(loss: dict[str, Any], match: str) -> None:
    config = demo().config
    derive(config, 3, [1.0, 2.0, 3.0])
    config["model"]["decode_head"]["loss_decode"] = loss
    with pytest.raises(ValueError, match=match):
        derive(config, 3, [1.0, 2.0, 3.0])
    derive(config, 3)


def test_a_missing_config_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'seg_configs/demo.py'"):
        config_path(str(Path("demoo")))
