"""A row of a table from plan to end, with jobs that are only pretended."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tests.helpers.run_folders import write_detection
from tools.reproduction.make import make_table, needed_sets
from tools.reproduction.paper import find_table
from tools.reproduction.plan import Planner
from tools.reproduction.sets import Places
from tools.running.executor import Executor


def test_lists_of_images_are_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = find_table("transfer")
    row = table.row("food101")
    for folder in ("inat19/annotations", "inat18/annotations", "cars/cars_train", "food101/meta", "food101/images/pie"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for year in ("18", "19"):
        (tmp_path / f"data/inat{year}/train20{year}.json").touch()
    (tmp_path / "data/food101/meta/train.txt").write_text("pie/1\n")

    def make() -> int:
        places = Places([str(tmp_path / "data")], needed_sets([row]))
        return make_table(table, [row], Planner(tmp_path / "out", places), 1, 1, None, dry_run=False)

    with pytest.raises(UserError, match=r"1.jpg does not exist \(1 of 1\)"):
        make()
    assert not (tmp_path / "out").exists()
    seen: list[str] = []
    listed = tmp_path / "out" / "lists" / "food101.txt"

    def pretend(self: Executor, jobs: list) -> None:
        seen.append(listed.read_text())
        write_detection(tmp_path / "out" / "det", "coco_3x_vit_small_random", (38.0,) * 6)

    monkeypatch.setattr(Executor, "run", pretend)
    image = tmp_path / "data/food101/images/pie/1.jpg"
    image.touch()
    assert make() == 0
    assert seen == [f"{image}\n"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Table 3" in text and "## ViT-S pre-trained on one set" in text
    assert "vit_small_random,box AP,38.3,38.0,,1" in (tmp_path / "out" / "table.csv").read_text()
