"""Values that the fine-tunings of a study should have in common, from hand-made runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.reproduction.study import finetuning_folder
from tools.reproduction.study_mixed import mixed_values
from tools.reproduction.study_report import read_values, write_table


def make(output: Path, row: str, seed: int, share: float = 1.0, lr: float = 1e-3, **recipe: Any) -> None:
    folder = finetuning_folder(output, row, "camvid", seed, share)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"mIoU": 1.0}))
    values = {"lr": lr, "seed": seed, "labels": share, "steps": 5 * (seed + 1)}
    (folder / "config.json").write_text(json.dumps({"values": values, "recipe_values": recipe}))


def test_rows_seeds_and_shares_may_differ(tmp_path: Path) -> None:
    make(tmp_path, "random", 0, model={"backbone": {"embed_dim": 96}})
    make(tmp_path, "full", 1, 0.1, model={"backbone": {"embed_dim": 192}})
    assert mixed_values(tmp_path, ("random", "full")) == []


def test_what_a_changed_config_leaves_is_told_in_the_table(tmp_path: Path) -> None:
    rows = ("random", "full")
    for seed in (0, 1):
        make(tmp_path, "random", seed, schedule={"power": 1.0})
    make(tmp_path, "full", 0, 0.1, lr=2e-3, schedule={"power": 0.9}, added="unknown to the others")
    told = [
        "The fine-tunings on camvid differ in schedule.power: 1.0 (random/camvid/seed0/train_seg and 1 more) and 0.9 "
        "(full/camvid/seed0/train_seg_10_percent).",
        "The fine-tunings on camvid differ in lr: 0.001 (random/camvid/seed0/train_seg and 1 more) and 0.002 "
        "(full/camvid/seed0/train_seg_10_percent).",
    ]
    assert mixed_values(tmp_path, rows) == told
    assert mixed_values(tmp_path, ("random",)) == [], "rows that are not in the table"
    write_table(tmp_path, read_values(tmp_path, rows), rows)
    assert all(sentence in (tmp_path / "table.md").read_text() for sentence in told)


def test_a_damaged_config_is_left_to_the_tool_that_reads_it(tmp_path: Path) -> None:
    make(tmp_path, "random", 0)
    make(tmp_path, "full", 0, lr=2e-3)
    (finetuning_folder(tmp_path, "full", "camvid", 0) / "config.json").write_text("{")
    assert mixed_values(tmp_path, ("random", "full")) == []
