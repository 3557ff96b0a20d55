"""tools/pretraining/train.py: what the loop is given; tests/tools/test_pretrain.py has whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.recipes import get_recipe
from splitmask_backbones import load_encoder
from tests.helpers.small_runs import make_inputs
from tools import pretrain
from tools.pretraining import train
from tools.running.planned import planned_values


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `fit` is called with; it trains nothing."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(train, "fit", lambda fabric, method, optimizer, **how: given.update(how, method=method))
    return given


def run(tmp_path: Path, *options: str) -> None:
    data = make_inputs("pretrain", tmp_path / "images")
    words = ["--recipe", "tiny", "--data", str(data), "--output", str(tmp_path / "run"), "--workers", "0"]
    assert pretrain.main([*words, "--device", "cpu", *options]) == 0


def test_the_schedule_warms_up_and_ends_at_the_recipes_share(fitted: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, "--steps", "20", "--warmup-fraction", "0.25", "--end-lr-factor", "0.1")
    rates = [fitted["lr_at"](step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.02)
    assert (fitted["loop"].total_steps, fitted["weight_decay_at"], fitted["grad_cache"]) == (20, None, None)
    assert not fitted["loop"].clip_per_parameter


def test_dinos_weight_decay_grows_and_its_gradients_are_clipped_one_by_one(
    fitted: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    run(tmp_path, "--method", "dino", "--steps", "20")
    assert [fitted["weight_decay_at"](step) for step in (0, 10, 20)] == pytest.approx([0.04, 0.22, 0.4])
    assert fitted["loop"].clip_per_parameter
    (tmp_path / "other").mkdir()
    run(tmp_path / "other", "--method", "dino", "--clip-per-parameter", "false")
    assert not fitted["loop"].clip_per_parameter


def test_what_the_fine_tuning_tools_have_to_be_told() -> None:
    assert "add encoder=none (train_det) or model.backbone.encoder=none" in train.TO_FINE_TUNE
    rest = ["det_configs/demo.py", "--data", "x", "--weights", "none", "encoder=none"]
    assert planned_values("train_det.py", rest)["encoder"] is None, "an option that the tool takes"


def test_micro_batches_are_matched_together_unless_told_otherwise(fitted: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, "--accumulate", "2")
    assert fitted["grad_cache"] is fitted["method"] and fitted["loop"].accumulate == 2
    other = tmp_path / "plain"
    other.mkdir()
    run(other, "--accumulate", "2", "--grad-cache", "false")
    assert fitted["grad_cache"] is None


def test_the_run_ends_with_encoder_and_card(fitted: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path)
    encoder = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert encoder.embed_dim == fitted["method"].encoder.embed_dim
    assert get_recipe("tiny").model in (tmp_path / "run" / "MODEL_CARD.md").read_text()


def test_crops_of_the_device_are_those_of_the_data_processes(fitted: dict[str, Any], tmp_path: Path) -> None:
    batches = []
    for place in ("cpu", "device"):
        (tmp_path / place).mkdir()
        run(tmp_path / place, "--crops", place)
        batches.append(next(fitted["batches"](3)))
    assert batches[0].keys() == batches[1].keys()
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])
