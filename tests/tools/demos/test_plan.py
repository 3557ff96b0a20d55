"""A demo's jobs are accepted by their tools; its report."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from PIL import Image

from pretrain.recipes import get_recipe
from pretrain.training.metrics import read_json_lines
from tests.helpers.paths import ROOT
from tests.helpers.plans import check
from tools.common import plots
from tools.demo_data import DemoData, make_demo_data
from tools.demos import plan as report
from tools.demos.inputs import Inputs, open_folder, own_inputs
from tools.demos.plan import KNOWN, demo_jobs
from tools.running.planned import planned_recipe


@pytest.mark.parametrize("segmentation", [True, False])
def test_the_jobs_of_a_small_folder(tmp_path: Path, segmentation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not segmentation:
        monkeypatch.setattr("tools.demos.inputs.MAX_CLASSES", 3)
    data, output = make_demo_data(tmp_path / "data", DemoData(6, 3, 1, img_size=96)), tmp_path / "out"
    inputs = own_inputs(open_folder(str(data / "coco"), output / "data"), output / "data")
    assert inputs.pretrain[-4:-2] == ["--batch-size", "6"] and inputs.pretrain[-2] == "--vocab-size"
    assert len(inputs.pictures) == 3 and len(inputs.token_images) == 6
    assert (inputs.note is None) == segmentation
    jobs = demo_jobs(output, inputs, {"pretrain": 3, "det": None, "seg": 2}, 0, 1)
    heads = ["det", "seg"] if segmentation else ["det"]
    trained = [f"{head}_{start}" for head in heads for start in ("none", "splitmask")]
    assert [job.name for job in jobs] == ["pretrain", *trained, *(f"{name}/predict" for name in trained)]
    for job in jobs:
        check(job)
        smaller = job.argv[job.argv.index("--batch-size") + 1] if "--batch-size" in job.argv else None
        trains_on_few = job.name == "pretrain" or job.name in ("seg_none", "seg_splitmask")  # Mask R-CNN takes 4
        assert smaller == ("6" if trains_on_few else None)
        assert ("--steps" in job.argv) == (job.name in ("pretrain", "seg_none", "seg_splitmask"))
    assert sorted(path.name for path in (output / "data" / "pictures").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_curves_and_tables(tmp_path: Path) -> None:
    lines = ['{"step": 10, "loss": 2.0}', '{"step": 20, "loss": null}', '{"step": 30, "loss": 1.0}', '{"step": 4']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert plots.curve(read_json_lines(tmp_path / "metrics.jsonl"), "loss") == ([10, 30], [2.0, 1.0])
    assert read_json_lines(tmp_path / "nothing.jsonl") == []
    assert plots.show(None) == "undefined"
    assert plots.markdown_table(["a", "b"], [["x", "1.0"]]) == "| a | b |\n| :--- | ---: |\n| x | 1.0 |\n"
    plots.save_curves({"loss": {"one": ([1, 2], [2.0, 1.0])}, "empty": {}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_very_wide_pictures_leave_a_grid_that_a_jpeg_can_hold(tmp_path: Path) -> None:
    wide, high = Image.new("RGB", (1000, 20)), Image.new("RGB", (20, 1000))
    plots.save_grid({str(number): [wide, high] for number in range(6)}, tmp_path / "grid.jpg", cell=240)
    with Image.open(tmp_path / "grid.jpg") as grid:
        assert grid.width == 6 * 4 * 240 + 7 * 6


def test_the_table_holds_scores_and_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for start, box_ap in (("none", 1.25), ("splitmask", 3.5)):
        results = {"bbox": {"AP": box_ap}, "segm": {"AP": None}}
        (tmp_path / f"det_{start}").mkdir()
        (tmp_path / f"det_{start}" / "results.json").write_text(json.dumps(results))
    seconds = {"pretrain": 60.4, "det_none": 1.0, "det_splitmask": 2.0}
    report.write_table(tmp_path, lambda name: seconds.get(name, 0.0), "no segmentation: too many classes")
    text = (tmp_path / "table.md").read_text()
    assert "| random init | 1.2 | undefined | - | 0 | 1 |" in text
    assert "| SplitMask | 3.5 | undefined | - | 60 | 2 |" in text
    assert "\nval, in percent. SplitMask's pre-training changes box AP +2.2, at equal fine-tuning. One seed" in text
    assert text.endswith("small difference. No segmentation: too many classes.\n")
    assert "table.md" in capsys.readouterr().out


def test_a_pretraining_of_another_versions_recipe_is_told(tmp_path: Path) -> None:
    inputs = Inputs(["--data", "x"], ["--data", "x"], None, [], [])
    pretraining = demo_jobs(tmp_path, inputs, {"pretrain": 3, "det": None, "seg": None}, 0, 1)[0]
    recipe = planned_recipe(pretraining.argv)
    assert recipe == get_recipe("demo").override({"steps": 3, "seed": 0})
    values = dataclasses.asdict(recipe) | {"match_weight": 1.0}
    pretraining.folder.mkdir(parents=True)
    (pretraining.folder / "config.json").write_text(json.dumps({"values": values}))
    assert pretraining.changed_values() == {"match_weight": (1.0, 0.1)}


def test_the_known_spread_is_that_of_the_page() -> None:
    """Mean and standard deviation, recomputed from the page's values seed by seed."""
    text = (ROOT / "docs" / "study" / "demo.md").read_text(encoding="utf-8")
    for title in ("random init", "SplitMask"):
        rows = re.findall(rf"^\| {title}, seed \d \| (\S+) \| (\S+) \| (\S+) \|$", text, flags=re.MULTILINE)
        assert len(rows) == 3
        columns = [[float(value) for value in column] for column in zip(*rows, strict=True)]
        again = [number for column in columns for number in (fmean(column), stdev(column))]
        known = KNOWN.split(f"{title} box AP ")[1].split(";")[0]
        # The page has one digit of each.
        assert [float(number) for number in re.findall(r"\d+\.\d", known)] == pytest.approx(again, abs=0.11)
