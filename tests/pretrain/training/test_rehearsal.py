"""What a rehearsal counts, and what the whole run takes by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.training import rehearsal
from pretrain.training.loop_config import Loop
from pretrain.training.measuring import STEPS
from pretrain.training.rehearsal import NUM_IMAGES, Rehearsal, whole_run


def test_a_few_are_evenly_spread_and_enough_for_the_steps() -> None:
    timer = Rehearsal()
    assert timer.a_few(list(range(1000)), "val", 64) == [0, 250, 500, 750]
    assert NUM_IMAGES["val"] == 4
    assert timer.a_few([3, 1, 2], "val", 64) == [3, 1, 2]
    assert len(timer.a_few(range(10_000), "train", 2048)) == STEPS * 2048
    assert len(timer.a_few(range(10_000), "train", 2)) == NUM_IMAGES["train"]
    assert timer.num_images == {"val": 3, "train": 10_000} and timer.num_used == {"val": 3, "train": 512}


def test_seconds_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    # Made, training begins, three steps, saved, evaluated.
    moments = iter([100.0, 110.0, 117.0, 119.0, 122.0, 122.5, 130.5])
    monkeypatch.setattr(rehearsal, "now", lambda: next(moments))
    timer = Rehearsal()
    timer.a_few(range(1000), "train", 4)
    timer.a_few(range(40), "val", 4)
    timer.begin_training()
    for done in (1, 2, 3):
        timer.after_step(done)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step").write_bytes(b"12345")
    timer.end_training(tmp_path)
    timer.evaluated()
    fabric: Any = SimpleNamespace(device="cpu", world_size=1)
    loop = Loop(total_steps=90, batch_size=4, steps_per_epoch=250, save_every=40)
    entry = timer.record("train_det", loop, fabric, "32", num_evaluations=3)
    assert not checkpoints.exists()
    assert entry["step_seconds"] == 2.5 and entry["first_step_seconds"] == 7.0  # the median of 2 and 3
    assert entry["checkpoint_bytes"] == 5 and entry["evaluated_images"] == 4
    # 90 steps, a save after 40, 80 and 90, 3 evaluations of 40 images at 2 s each.
    assert entry["whole_run"] == {"setup": 10.0, "training": 225.0, "saves": 1.5, "evaluations": 240.0}
    # In the recipe's own steps of 16 images.
    assert whole_run(entry, total_steps=10, batch_size=16)["training"] == 10 * 2.5 * 4
    folder: Any = SimpleNamespace(path=tmp_path)
    with caplog.at_level("INFO", logger="pretrain"):
        timer.write(folder, entry)
    assert json.loads((tmp_path / "rehearsal.json").read_text())["steps"] == 3
    told = caplog.text
    assert "2.50 s a step (the first 7.00 s)" in told and "90 steps: about 7 min 56 s" in told and "no result" in told
