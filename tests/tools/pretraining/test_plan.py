"""`--recipe own`, `--plan`, `--hours`: what is said, kept for a resume, refused, and that measuring leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.recipes import get_recipe
from tests.helpers.pretrain_tool import OPTIONS, error_of, run
from tools.pretraining import cost, plan
from tools.pretraining.cost import MEASURED_FROM, Cost, with_loading
from tools.pretraining.machine import Sizes
from tools.pretraining.plan import Plan, told

OWN = ["--recipe", "own", "--workers", "0"]
LONG = ["--recipe", "small", "--batch-size", "8"]
SMALL = ["--img-size", "64", "--batch-size", "4", "--vocab-size", "64"]
COST = Cost(
    step_seconds=0.5,
    item_seconds=0.003,
    fixed_bytes=1e9,
    bytes_per_image=0.1e9,
    item_bytes=1000,
    checkpoint_bytes=2 * 10**8,
)


def plan_of(recipe: Any, **changes: Any) -> Plan:
    sizes = Sizes(256, 200, 1040, 1e6)
    made = Plan(recipe, {"model": "because"}, 470, sizes, "cpu, 2 cores", 16 * 10**9, 10**10, COST, 1, "off")
    return dataclasses.replace(made, **changes)


def test_a_plan_is_said_and_nothing_written(images: Path, tmp_path: Path) -> None:
    result = run(*OWN, *SMALL, "--data", images, "--output", tmp_path / "out", "--plan")
    assert result.returncode == 0, result.stderr
    shown = result.stdout
    assert re.search(r"model +vit_tiny +the one that a CPU trains", shown)
    assert re.search(r"batch +4 +given", shown) and re.search(r"crop +64 px.* given", shown)
    assert re.search(r"mask +uniform, 75% +the paper's for fewer than 10,000 images", shown)
    assert re.search(r"time +about .* s a step measured", shown) and "memory" in shown and "2 checkpoints of" in shown
    assert len(shown.splitlines()) < 20 and max(map(len, shown.splitlines())) < 130
    assert "nothing was written" in shown and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    again = run(*OPTIONS, "--data", images, "--output", tmp_path / "out", "--plan")
    assert again.returncode == 0 and "out holds a run (config.json)" in again.stdout
    assert "s a step measured" in again.stdout  # for any recipe, however short
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_resume_takes_what_was_derived(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    words = [*OWN, "--data", data, "--output", tmp_path / "out"]
    done = run(*words, *SMALL, "--steps", 2)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["values"]["model"] == "vit_tiny" and config["values"]["base_lr"] == 8.8e-3
    reasons = config["free"]["plan"]["reasons"]
    assert reasons["img_size"] == "given" and "CPU" in reasons["model"]
    (tmp_path / "out/encoder.safetensors").unlink()
    monkeypatch.setattr(plan, "make_plan", None)  # nothing is derived again
    monkeypatch.setattr("pretrain.own_recipe.choose_model", None)
    assert run(*words, "--resume").returncode == 0
    assert "--hours was (absent) and is now 2.0" in error_of(run(*words, "--resume", "--hours", 2))
    shutil.copy(next(path for path in data.rglob("*.*") if path.is_file()), data / "new.jpg")
    assert "num_files" in error_of(run(*words, "--resume"))


def test_measuring_changes_no_byte(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*OPTIONS, "--data", images, "--output"]
    assert run(*words, tmp_path / "a").returncode == 0
    assert MEASURED_FROM > 6
    monkeypatch.setattr(plan, "MEASURED_FROM", 1)
    made = run(*words, tmp_path / "b")
    assert made.returncode == 0 and "s a step measured" in made.stdout, made.stderr
    assert "s a step measured" not in run(*words, tmp_path / "b", "--resume").stdout
    same = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]


def test_hours_bound_any_recipe(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(recipe: Any, images: Any, options: Any, fabric: Any, init: Any, split: Any) -> Any:
        return recipe, dataclasses.replace(COST, step_seconds=100.0)

    monkeypatch.setattr(plan, "measure", measured)
    words = ["--data", images, "--output", tmp_path / "out", "--plan", "--workers", 0]
    # 0.95 x 4 x 3,600 / 100
    own = run(*OWN, *words, *SMALL)
    assert "136 steps" in own.stdout and "an afternoon: 4 hours" in own.stdout
    tiny = run("--recipe", "tiny", "--epochs", 500, *words)
    assert "1,000 steps" in tiny.stdout  # 20 images in batches of 8
    assert "exclude each other" in error_of(run("--recipe", "tiny", "--epochs", 500, *words, "--hours", 5))
    small = run("--recipe", "small", "--batch-size", 8, *words, "--hours", 5)
    assert "171 steps" in small.stdout and "the recipe's would be 2,000 steps" in small.stdout
    assert "has room for 3 steps" in error_of(run("--recipe", "small", "--batch-size", 8, *words, "--hours", 0.1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--compile", "auto", "--steps", 199], ["off"]),
        (["--compile", "auto", "--steps", 200], ["on"]),
        (["--compile", "off", "--steps", 200], ["off"]),
        (["--compile", "on", "--steps", 199], ["on"]),
        # 0.95 x 3,600 / 50 are 68 steps an hour, and twice as many where the run compiles
        ([*LONG, "--compile", "auto", "--hours", 2], ["off"]),
        ([*LONG, "--compile", "auto", "--hours", 4], ["off", "on"]),
    ],
)
def test_what_is_measured_is_what_auto_chooses(
    words: list[Any], expected: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measured(recipe: Any, images: Any, options: Any, fabric: Any, init: Any, split: Any) -> Any:
        seen.append(recipe.compile)
        return recipe, dataclasses.replace(COST, step_seconds=25.0 if recipe.compile == "on" else 50.0)

    def pays(choice: str, device: Any, total_steps: int) -> bool:  # as on a GPU
        return choice == "on" or choice == "auto" and total_steps >= 200

    monkeypatch.setattr(plan, "measure", measured)
    monkeypatch.setattr(plan, "pays", pays)
    told = run("--recipe", "tiny", "--data", images, "--output", tmp_path / "out", "--plan", "--workers", 0, *words)
    assert told.returncode == 0, told.stderr
    assert seen == expected
    assert expected != ["off", "on"] or "547 steps" in told.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hours", "0"], "--hours: must be a positive number, got 0"),
        (["--hours", "nan"], "--hours: must be a positive number, got nan"),
        (["--hours", "1", "--steps", "3"], "--hours and --steps exclude each other"),
        (["--plan", "--resume"], "--plan and --resume exclude each other"),
        (["--plan", "--rehearse"], "--plan and --rehearse exclude each other"),
        (["--plan", "--batch-size", "99"], "--batch-size 99 is larger than the data set of 20 images"),
        (["--plan", "--batch-size", "8", "--accumulate", "3"], "--batch-size 8 must be a multiple of processes x acc"),
        (["--init", "x.safetensors", "--position-init", "sincos"], "--position-init sincos has no effect with --init"),
    ],
)
def test_what_cannot_be_planned(images: Path, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in error_of(run(*OWN, "--data", images, "--output", tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_memory_disk_and_shared_memory_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("coco").override({"batch_size": 64})
    options: Any = SimpleNamespace(output=Path("out"), workers=2)
    fits = plan_of(recipe)  # 1 GB and 64 x 0.1 GB, over 0.8
    plan._check(fits, options)
    assert fits.disk == 4 * 2 * 10**8  # two checkpoints, one that is written, and the encoder
    # 0.8 x 5 GB leave 3 GB, for 30 images: three parts are 21.3, which 64 does not have; four are 16.
    message = r"--batch-size 64 needs about 9\.2 GB .*5\.0 GB are free: use --accumulate 4 \(all images stay"
    with pytest.raises(ValueError, match=message):
        plan._check_memory(recipe, 1, 10**9, 10**8, 5 * 10**9)
    plan._check_memory(recipe, 1, 10**9, 10**8, 10**10)
    with pytest.raises(ValueError, match="--output out: 2 checkpoints .* need 800 MB, and 700 MB are free"):
        plan._check(dataclasses.replace(fits, free=7 * 10**8), options)
    monkeypatch.setattr("pretrain.training.workers.free_shared_memory", lambda: 200_000)
    with pytest.raises(ValueError, match="shared memory"):  # 2 x 64,000 and two on their way
        plan._check(fits, options)
    plan._check(fits, SimpleNamespace(output=Path("out"), workers=0))  # type: ignore[arg-type]


def test_what_does_not_fit_is_not_tried(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is timed on a card would end in "out of memory" before anything could be advised."""
    monkeypatch.setattr(plan, "free_memory", lambda device: 5 * 10**7)
    monkeypatch.setattr("tools.pretraining.cost.time_steps", lambda *_: pytest.fail("a step was made"))
    words = ["--recipe", "tiny", "--batch-size", "16", "--plan", "--data", images, "--output", tmp_path / "out"]
    assert "--batch-size 16 needs about" in error_of(run(*words))


def test_what_is_said() -> None:
    lines = told("own", plan_of(get_recipe("coco").override({"batch_size": 64, "accumulate": 2, "steps": 7200})))
    text = "\n".join(lines)
    assert "470 images, shorter side 256 px (200 to 1040); cpu, 2 cores" in lines[0]
    assert re.search(r"time +about 1 h 00 min +0\.5 s a step measured, 3 ms to read an image", text)
    assert re.search(r"memory +about 5\.2 GB of 16\.0 GB +100 MB an image", text)  # 1 GB and 32 x 0.1 GB are 0.8 of it
    assert "decoded images are 1.4 GB" in text and re.search("model +vit_small +because", text)
    assert re.search("batch +64 in 2 parts", text)
    small = "\n".join(told("small", plan_of(get_recipe("small"))))
    assert "attention" not in text and "queries and keys up to 3" in small
    assert re.search("outputs +256", "\n".join(told("tiny", plan_of(get_recipe("tiny").override({"method": "dino"})))))
    short = "\n".join(told("tiny", plan_of(get_recipe("tiny"), cost=None)))
    assert "not measured for fewer than 60 steps" in short


def test_what_has_no_effect_gives_no_reason(images: Path, tmp_path: Path) -> None:
    words = [*OWN, *SMALL, "--data", images, "--output", tmp_path / "out", "--plan"]
    told = run(*words, "--lr", "1e-3", "--drop-path", "0.3").stdout
    assert re.search(r"lr +0\.001 +given$", told, re.MULTILINE), told
    assert re.search(r"warm-up .*drop path 0\.3 .*; given$", told, re.MULTILINE), told


def test_a_batch_that_is_halved_has_fewer_parts(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of 16 images are in the memory at a time, and time is short: 8 images are two parts."""

    def measured(recipe: Any, images: Any, options: Any, fabric: Any, init: Any, split: Any) -> Any:
        parts = split(0.0, 1.0)
        return dataclasses.replace(recipe, accumulate=parts), dataclasses.replace(
            COST, step_seconds=10.0, fixed_bytes=0.0, bytes_per_image=1.0
        )

    monkeypatch.setattr(plan, "measure", measured)
    monkeypatch.setattr(plan, "free_memory", lambda device: 5)
    monkeypatch.setattr("pretrain.own_recipe.choose_smaller_batch", lambda recipe, *_: (8, "time is short"))
    monkeypatch.setattr("pretrain.own_recipe.choose_batch_size", lambda *_: (16, "as asked"))
    words = ["--img-size", "64", "--vocab-size", "64", "--data", images, "--output", tmp_path / "out", "--plan"]
    told = run(*OWN, *words)
    assert re.search(r"batch +8 in 2 parts +time is short", told.stdout), told.stdout + told.stderr
    assert re.search(r"parts +4 images +4 images at a time fit into the memory; all 8 stay negatives", told.stdout)


def test_seconds_with_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost.torch, "get_num_threads", lambda: 4)
    assert with_loading(1.0, 2.0, 0, "cuda") == 3.0
    assert with_loading(1.0, 2.0, 4, "cuda") == 1.0
    assert with_loading(1.0, 8.0, 4, "cuda") == 2.0
    assert with_loading(1.0, 2.0, 8, "cpu") == 1.5


def test_images_on_a_card_are_not_promised_to_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    card, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 3000, 4 * 3000))
    on_device = get_recipe("small").override({"crops": "device"})
    assert plan.resident_bytes(on_device, "auto", 1000, card) == 3000
    assert plan.resident_bytes(on_device, "auto", 1001, card) == 0, "they do not fit there, and stay in the file"
    assert plan.resident_bytes(on_device, "off", 1000, card) == plan.resident_bytes(on_device, "auto", 1000, cpu) == 0
    assert plan.resident_bytes(get_recipe("small"), "auto", 1000, card) == 0
