"""The values that a command line asks for are those that its run records, and another version's are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitmask_backbones.errors import UserError
from tools.running.executor import Executor
from tools.running.job import Job
from tools.running.planned import planned_values

CONFIG = """
import dataclasses
from det_configs.common.tiny import TINY
recipe = dataclasses.replace(TINY, steps={steps}, anchor_sizes=(8, 16, 32, 64, 128), flip={flip})
"""


def values_of(tool: str, *argv: str) -> dict[str, Any]:
    return planned_values(tool, argv)


def finished(folder: Path, tool: str, *argv: str, record: dict[str, Any]) -> Job:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "results.json").touch()
    return Job("a", tool, argv, folder, "results.json")


def test_of_a_pretraining() -> None:
    values = values_of("pretrain.py", "--recipe", "small", "--data", "x", "--steps", "7")
    assert (values["steps"], values["tokenizer"]) == (7, "kmeans")
    assert values_of("pretrain.py", "--recipe", "own", "--data", "x") == {}, "the images decide"


def test_of_a_classifier_but_for_the_encoder_that_weights_bring() -> None:
    values = values_of("train_cls.py", "--recipe", "cars", "--data", "x", "--weights", "none", "--lr", "1e-3")
    assert values["lr"] == 1e-3 and "model" not in values


def test_tools_without_a_recipe_have_none() -> None:
    assert values_of("convert.py", "x", "y") == {} == values_of("benchmarks/lightly_dino.py", "--data", "x")


def test_a_detector_of_a_config_that_was_edited_is_not_taken_for_done(tmp_path: Path) -> None:
    config, folder = tmp_path / "mine.py", tmp_path / "run"
    argv = (str(config), "--data", "x", "--weights", "none", "--seed", "3", "lr=0.002")
    config.write_text(CONFIG.format(steps=5, flip=0.5))
    values = values_of("train_det.py", *argv)
    assert (values["steps"], values["seed"], values["lr"]) == (5, 3, 0.002)
    options = {name: values.pop(name) for name in ("steps", "seed", "lr")}
    job = finished(folder, "train_det.py", *argv, record={"values": options, "recipe_values": values})
    Executor(tmp_path).check([job])
    config.write_text(CONFIG.format(steps=6, flip=0.25))
    with pytest.raises(UserError, match=r"another version of its recipe or config \((flip|steps) .*steps 5 and not 6"):
        Executor(tmp_path).check([job])
    config.write_text("recipe = 1")
    Executor(tmp_path).check([job])  # the tool says what is wrong with such a file


def test_a_segmentor_of_a_config_that_was_edited_is_not_taken_for_done(tmp_path: Path) -> None:
    pytest.importorskip("mmengine", reason="the extra 'segmentation' is not installed")
    from tools.segmentation.config import config_path
    from tools.segmentation.recipe import SegRecipe

    argv = ("camvid_tiny", "--data", "x", "--weights", "none", "--labels", "0.1", "model.backbone.depth=6")
    given = {"labels": 0.1, "overrides": ["model.backbone.depth=6"]}
    record = SegRecipe.load(config_path("camvid_tiny")).override(given).values()
    job = finished(tmp_path / "run", "train_seg.py", *argv, record=record)
    assert job.changed_values() == {}
    record["recipe_values"]["train_pipeline"][-1] = {"type": "Another" * 20}
    record["recipe_values"]["schedule"]["power"] = 0.5
    del record["recipe_values"]["model"]["backbone"]["norm"]
    job = finished(tmp_path / "run", "train_seg.py", *argv, record=record)
    assert set(job.changed_values()) == {"train_pipeline", "schedule.power", "model.backbone.norm"}
    with pytest.raises(UserError, match=r"schedule.power 0.5 and not 1.0") as error:
        Executor(tmp_path).check([job])
    assert "Another" not in str(error.value) and "train_pipeline" in str(error.value)
