"""The comparison with lightly-train: what it is called with, and what is said where it is not installed.

lightly-train is no dependency: a stand-in writes what it exports, a state dict of timm's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pretrain.recipes import get_recipe
from splitmask_backbones.checkpoints import read_encoder_file
from tests.helpers.in_process import run_tool
from tools.benchmarks import lightly_dino

TINY = [
    "--recipe",
    "small",
    "--embed-dim",
    "48",
    "--depth",
    "2",
    "--img-size",
    "64",
    "--steps",
    "5",
    "--batch-size",
    "2",
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Returns a folder of four images."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_the_budget_is_the_recipes() -> None:
    recipe = get_recipe("small").override({"method": "dino", "embed_dim": 48, "depth": 2, "steps": 100, "seed": 3})
    called = lightly_dino.arguments(recipe, 470)
    model = called.pop("model")
    assert isinstance(model, timm.models.VisionTransformer)
    assert (model.embed_dim, len(model.blocks), model.patch_embed.patch_size) == (48, 2, (16, 16))
    assert called == {
        "method": "dino",
        "epochs": 15,  # of 7 steps: 100 fit in
        "batch_size": 64,
        "precision": "32-true",
        "seed": 3,
        "devices": 1,
        # 96 of 224 of the side: 41 pixels, 3 patches of 16
        "transform_args": {"image_size": (96, 96), "local_view": {"num_views": 8, "view_size": (48, 48)}},
        "trainer_args": {"max_steps": 100},
    }


def test_what_it_exports_becomes_an_encoder_of_ours(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}

    def pretrain(out: str, **arguments: Any) -> None:
        called.update(arguments)
        (Path(out) / "exported_models").mkdir(parents=True)
        torch.save(arguments["model"].state_dict(), Path(out) / "exported_models" / "exported_last.pt")

    monkeypatch.setitem(sys.modules, "lightly_train", SimpleNamespace(pretrain=pretrain))
    argv = [*TINY, "--data", str(images), "--output", str(tmp_path / "out"), "--workers", "0"]
    done = run_tool(lightly_dino.main, *argv)
    assert done.returncode == 0, done.stderr
    assert called["data"] == [str(images / f"{i}.png") for i in range(4)]
    encoder = read_encoder_file(tmp_path / "out" / "encoder.safetensors")
    np.testing.assert_array_equal(
        encoder.tensors["patch_embed.proj.weight"], called["model"].state_dict()["patch_embed.proj.weight"]
    )
    again = run_tool(lightly_dino.main, *argv)
    assert again.returncode == 2
    assert "exists already: name another --output" in again.stderr


def test_without_lightly_train(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly_train", None)
    done = run_tool(lightly_dino.main, *TINY, "--data", str(images), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "pip install lightly-train" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_compare_is_said(images: Path, tmp_path: Path) -> None:
    words = ["--data", str(images), "--output", str(tmp_path / "out")]
    own = run_tool(lightly_dino.main, "--recipe", "own", *words)
    assert (own.returncode, "name another, such as small" in own.stderr) == (2, True)
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[: len(whole) // 2])
    broken = run_tool(lightly_dino.main, *TINY, *words)
    assert broken.returncode == 2
    assert str(images / "2.png") in broken.stderr and "repair or remove it" in broken.stderr
