"""What the classifier brings to the skeleton, and the picture of its predictions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("timm", reason="the extra 'classification' is not installed")

import torch

from tests.helpers.cls_data import write_root
from tools.classification import probe_run
from tools.classification.data import DataOptions
from tools.classification.draw import PICTURE_WIDTH, draw
from tools.classification.recipes import get_recipe
from tools.classification.task import ClassificationTask
from tools.finetuning.options import FinetuneOptions

FABRIC: Any = SimpleNamespace(is_global_zero=True, broadcast=lambda value: value)


def make(root: Path, **given: Any) -> ClassificationTask:
    options = FinetuneOptions(root, False, 0, 1, 1, 0.0, None, False, None, False, True)
    task = ClassificationTask(options, "tiny", get_recipe("tiny"), given, DataOptions(str(root)))
    task.recipe = task.base.override(given)
    return task


def test_recorded_values_give_the_recipe_again(tmp_path: Path) -> None:
    write_root(tmp_path / "root", 2, 1)
    task = make(tmp_path / "root", lr=0.5)
    task.find_data(("train", "val"))
    identity = task.check_data(SimpleNamespace(path=tmp_path, is_main=True), FABRIC)  # type: ignore[arg-type]
    assert (identity["classes"], identity["unreadable"]) == (["blue", "green", "red"], [])
    task.build(None)
    values = task.values()
    assert values["values"]["model"] == "vit_tiny" and task.recorded(values) == task.recipe
    assert task.data_report()["train"]["images_per_class"] == {"blue": 2, "green": 2, "red": 2}
    assert task.score({"top1": 12.5}) == 12.5


def test_an_image_comes_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    assert [make(tmp_path, repeats=repeats).repeats() for repeats in (1, 3)] == [1, 3]


def test_bars_are_as_long_as_the_scores() -> None:
    listed = [{"class": "red", "score": 1.0}, {"class": "blue", "score": 0.25}]
    drawn = np.asarray(draw(Image.new("RGB", (180, 100), "black"), listed)).astype(int)
    assert drawn.shape[:2] == (200 + 2 * 22 + 8, PICTURE_WIDTH)
    bar = (drawn == (176, 206, 235)).all(axis=2)
    longest = [bar[204 + 22 * row : 226 + 22 * row].sum(axis=1).max() for row in (0, 1)]
    assert longest == [pytest.approx(share * (PICTURE_WIDTH - 8), abs=2) for share in (1.0, 0.25)]


def test_the_curve_of_a_probe_is_drawn(tmp_path: Path) -> None:
    entries = [{"layer": layer, "knn": 50.0 + layer, "linear": None} for layer in range(3)]
    probe_run._plot(entries, tmp_path / probe_run.CURVE)
    with Image.open(tmp_path / probe_run.CURVE) as image:
        assert np.asarray(image).std() > 0


def test_the_recipes_values_reach_model_and_optimizer(tmp_path: Path) -> None:
    """Layer by layer: this optimizer is the detector's as well."""
    write_root(tmp_path / "root", 2, 1)
    values = {"lr": 0.5, "layer_decay": 0.65, "weight_decay": 0.3, "beta2": 0.9, "drop_path": 0.2}
    task = make(tmp_path / "root", **values)
    task.find_data(("train", "val"))
    model: Any = task.build(None)
    assert model.encoder.config["drop_path_rate"] == 0.2
    optimizer = task.optimizer(model, torch.device("cpu"))
    placed = {name: group for group in optimizer.param_groups for name in group["names"]}
    layers = {"encoder.patch_embed.proj.weight": 0, "encoder.blocks.4.mlp.fc1.weight": 5, "head.weight": 13}
    for name, layer in layers.items():
        assert placed[name]["lr"] == pytest.approx(0.5 * 0.65 ** (13 - layer)), name
        assert (placed[name]["weight_decay"], placed[name]["betas"]) == (0.3, (0.9, 0.9)), name
