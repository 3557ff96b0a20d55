"""The small study: equal budgets, commands that the tools accept, table and pictures from hand-made runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from splitmask_backbones.errors import UserError
from tests.helpers.paths import ROOT
from tests.helpers.plans import check
from tools.reproduction import study_report
from tools.reproduction.executor import Executor
from tools.reproduction.statistics import mean_and_spread, shown
from tools.reproduction.study import ABLATION, BUDGETS, HEADS, METHODS, ROWS, picture_steps, run_folder, study_steps


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Returns a root with validation pictures of both sets."""
    root = tmp_path / "data"
    for name, head in HEADS.items():
        (root / name / head.pictures).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (24, 16), (30 * i, 0, 0)).save(root / name / head.pictures / f"{i:02d}.png")
    return root


def option(words: tuple[str, ...], name: str) -> str:
    return words[words.index(name) + 1]


def pairs(words: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("size", sorted(BUDGETS))
def test_every_row_has_the_budget_and_commands_that_work(size: str, data: Path, tmp_path: Path) -> None:
    budget = BUDGETS[size]
    steps = study_steps(budget, data, tmp_path / "out", 0, budget.rows, budget.seeds)
    pretrainings = [row for row in budget.rows if ROWS[row].words is not None]
    assert len(steps) == budget.seeds * 2 * (len(budget.rows) + len(pretrainings))
    assert len({step.name for step in steps}) == len({step.folder for step in steps}) == len(steps)
    images = {
        int(option(s.words, "--steps")) * int(option(s.words, "--batch-size")) for s in steps if s.tool == "pretrain.py"
    }
    assert len(images) == 1, "the same images seen in every pre-training"
    lengths = {(s.tool, "longer" in s.name, option(s.words, "--steps")) for s in steps if s.tool != "pretrain.py"}
    assert len(lengths) == 2 + 2 * ("random_longer" in budget.rows)
    done: set[str] = set()
    for step in steps:
        assert check(step) is None
        assert set(step.needs) <= done
        if step.tool != "pretrain.py":
            before = step.folder.parent / "pretrain" / "encoder.safetensors"
            assert option(step.words, "--weights") == (str(before) if step.needs else "none")
        if step.tool == "train_det.py":
            assert option(step.words, "--engine") == "torchvision", "the same on every machine"
        done.add(step.name)
    for step in picture_steps(tmp_path / "out", budget.rows):
        assert check(step) is None
        assert step.needs and set(step.needs) <= done, "pictures wait for their training, however many jobs there are"


def test_the_rows_differ_in_what_they_are_about(data: Path, tmp_path: Path) -> None:
    steps = study_steps(BUDGETS["gpu"], data, tmp_path / "out", 0, tuple(METHODS), 1)
    words = {step.name.split("/")[0]: step.words for step in steps if step.name.endswith("nuclei/seed0/pretrain")}
    assert set(words) == {"dino", "beit", "inpaint", "match", "full"}
    assert option(words["inpaint"], "--match-weight") == "0" and option(words["match"], "--inpaint-weight") == "0"
    assert option(words["beit"], "--method") == "beit" and "--method" not in words["full"]


def test_rows_of_the_ablation_change_one_value_and_work(data: Path, tmp_path: Path) -> None:
    budget = BUDGETS["cpu"]
    steps = study_steps(budget, data, tmp_path / "out", 0, ("full", *ABLATION), 1, ("nuclei",))
    assert len(steps) == 2 * (1 + len(ABLATION)) and all("nuclei" in step.name for step in steps)
    whole = pairs(tuple(steps[0].identity()[1:]))
    for pretraining, finetuning in zip(steps[2::2], steps[3::2], strict=True):
        assert check(pretraining) is None and check(finetuning) is None
        row = ROWS[pretraining.name.split("/")[0]]
        expected = pairs(row.words or ())
        if row.length != 1:
            expected |= {("--steps", str(round(row.length * budget.pretrain_updates)))}
        assert expected and pairs(tuple(pretraining.identity()[1:])) - whole == expected
        assert "none" not in finetuning.words


def test_what_an_older_recipe_made_is_not_taken_for_done(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    step = study_steps(BUDGETS["cpu"], data, output, 0, ("full",), 1, ("nuclei",))[0]
    assert step.recipe is not None and step.recipe.steps == BUDGETS["cpu"].pretrain_updates
    step.folder.mkdir(parents=True)
    (step.folder / "encoder.safetensors").touch()
    (output / "steps.json").write_text(json.dumps({step.name: {"identity": step.identity(), "seconds": 1.0}}))
    values = dataclasses.asdict(step.recipe)

    def check_with(**changes: object) -> None:
        config = {"command": "pretrain", "values": {k: v for k, v in (values | changes).items() if v != "unknown"}}
        (step.folder / "config.json").write_text(json.dumps(config))
        Executor(output).check([step])

    check_with()
    check_with(temperature="unknown")  # made before there was such a value: it had the default
    with pytest.raises(UserError, match=r"match_weight 0.5 and not 1.0"):
        check_with(match_weight=0.5)
    with pytest.raises(UserError, match=r"base_lr 0.0015 and not 0.004"):
        check_with(base_lr="unknown")


def test_the_estimate_knows_that_dino_is_dearer(data: Path, tmp_path: Path) -> None:
    budget = BUDGETS["cpu"]
    full, dino = (study_steps(budget, data, tmp_path, 0, (row,), 1, ("nuclei",))[0] for row in ("full", "dino"))
    assert full.seconds == budget.pretrain_updates * budget.pretrain_seconds + budget.start_seconds
    assert dino.seconds > 2 * full.seconds


def test_the_longer_row_pays_for_the_pre_training() -> None:
    budget = dataclasses.replace(
        BUDGETS["cpu"],
        pretrain_updates=100,
        pretrain_seconds=3.0,
        det_updates=20,
        det_seconds=2.0,
        seg_updates=30,
        seg_seconds=0.5,
    )
    assert budget.updates("nuclei", "random") == budget.updates("nuclei", "full") == 20
    assert budget.updates("nuclei", "random_longer") == 20 + 150  # 300 s of 2 s each
    assert budget.updates("camvid", "random_longer") == 30 + 600
    assert budget.finetuning_seconds("nuclei", "random_longer") == 340.0 == 40.0 + budget.pretraining_seconds


def test_budgets_take_about_as_long_as_they_promise(data: Path, tmp_path: Path) -> None:
    for size, jobs, minutes in (("cpu", 2, 150), ("gpu", 3, 40)):
        budget = BUDGETS[size]
        steps = study_steps(budget, data, tmp_path / "out", 0, budget.rows, budget.seeds)
        assert sum(step.seconds for step in steps) / jobs < 60 * minutes


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no folder nuclei"):
        study_steps(BUDGETS["cpu"], tmp_path, tmp_path / "out", 0, ("random",), 1)


def test_table_and_pictures(data: Path, tmp_path: Path) -> None:
    output, rows = tmp_path / "out", ("random", "full")
    box = {("random", 0): 1.0, ("random", 1): 3.0, ("full", 0): 5.0}
    for (row, seed), value in box.items():
        for name, results in (
            ("nuclei", {"bbox": {"AP": value}, "segm": {"AP": None}}),
            ("camvid", {"mIoU": 10 * value}),
        ):
            folder = run_folder(output, row, name, seed) / HEADS[name].tool
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results))
    values = study_report.read_values(output, rows)
    assert values == {
        "nuclei box AP": {"random": [1.0, 3.0], "full": [5.0]},
        "nuclei mask AP": {"random": [], "full": []},
        "camvid mIoU": {"random": [10.0, 30.0], "full": [50.0]},
    }
    study_report.write_table(output, values, rows, BUDGETS["cpu"])
    text = (output / "table.md").read_text()
    assert "| random init | 2.0 ± 1.4 (2) | - | 20.0 ± 14.1 (2) | - |" in text  # spread sqrt(2), sqrt(200)
    assert "| SplitMask | 5.0 (1) | - | 50.0 (1) |" in text
    assert "full,camvid mIoU,50.0,,1,50.0" in (output / "table.csv").read_text()
    for seed, steps in ((0, 100), (1, 400)):  # of another budget, and by a call with more seeds
        folder = run_folder(output, "full", "nuclei", seed) / "pretrain"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"values": {"steps": steps}}))
        look = {"step": steps, "train_inpaint_gain": 0.25 + seed, "train_match_rank1": 0.5, "effective_rank": None}
        (folder / "monitor.jsonl").write_text(json.dumps(look) + "\n")
    study_report.write_table(output, values, rows, BUDGETS["cpu"])
    text = (output / "table.md").read_text()
    assert "| 100 or 400 x 64 images | 200 | 300 |" in text
    assert "| SplitMask | 0.75 ± 0.71 (2) | 0.50 ± 0.00 (2) | - | - | - | - |" in text  # spread sqrt(0.5)
    assert study_report.finished_rows(output, ("beit",)) == ("random", "beit", "full")
    study_report.choose_pictures(data, output)
    assert sorted(path.name for path in (output / "pictures" / "nuclei").iterdir()) == [f"{i}.png" for i in range(4)]
    # Spread over the eight: the first, third, fifth and seventh.
    with Image.open(output / "pictures" / "camvid" / "3.png") as picture:
        assert picture.getpixel((0, 0))[0] == 180
    for row in rows:
        for name, head in HEADS.items():
            drawn = run_folder(output, row, name, 0) / head.tool / "predictions"
            drawn.mkdir()
            for i in range(4):
                Image.new("RGB", (24, 16)).save(drawn / f"{i}.png")
    assert all(step.done for step in picture_steps(output, rows))
    study_report.save_points(values, rows, output / "pictures" / "points.png")
    study_report.save_grids(output, rows)
    for name in ("points", "detections", "segmentations"):
        with Image.open(output / "pictures" / f"{name}.png") as picture:
            assert picture.width > 200
    (run_folder(output, "full", "camvid", 0) / "train_seg" / "results.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        study_report.read_values(output, rows)


def test_statistics() -> None:
    assert mean_and_spread([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5))  # (9 + 1 + 16) / 2
    assert mean_and_spread([2.0]) == (2.0, None)
    assert [shown([]), shown([1.25]), shown([1.0, 2.0])] == ["-", "1.2 (1)", "1.5 ± 0.7 (2)"]


def test_dry_run_of_the_study(data: Path, tmp_path: Path) -> None:
    command = ["tools/reproduce.py", "small", "--data", str(data), "--size", "gpu", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    assert "72 of 72 steps to do" in done.stdout  # 2 data sets, 3 seeds, 7 fine-tunings and 5 pre-trainings
    assert "as many more updates as fit in the time of a pre-training" in done.stdout
    one = subprocess.run(
        [sys.executable, *command, "--rows", "random,full", "--seeds", "1", "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "6 of 6 steps to do" in one.stdout
