"""The skeleton of the fine-tuning tools around a toy: a linear layer that learns one number."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from pretrain.training.run_folder import RunFolder
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import RESULTS
from tools.finetuning import trained
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.run import run
from tools.finetuning.task import Task
from tools.finetuning.trained import load_newest, use_run


@dataclass(frozen=True)
class Values:
    steps: int = 4
    lr: float = 0.1
    ema: float | None = None
    eval_every: int | None = 2
    batch_size: int = 2
    accumulate: int = 1
    clip_grad: float | None = None
    seed: int = 0
    precision: str = "32"

    def override(self, given: dict[str, Any]) -> Values:
        return replace(self, **given)

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps

    def lr_factor(self, step: int, total_steps: int) -> float:
        return 1.0


class Model(nn.Module):
    metric_names = ("loss",)
    encoder = SimpleNamespace(config={"size": 1}, load_report=None)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight - batch).square().mean()}


class Ones(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> torch.Tensor:
        return torch.ones(())


class Toy(Task):
    command, noun, name_key, remedy = "train_toy", "toy", "recipe", "omit what changes it"

    def find_data(self, needed: tuple[str, ...]) -> None:
        self.needed = needed

    def recorded(self, config: dict[str, Any]) -> Values:
        return Values(**config["values"])

    def check_data(self, folder: Any, fabric: Any) -> dict[str, Any]:
        return {"fingerprint": "f"}

    def build(self, weights: Path | None, encoder_config: dict[str, Any] | None = None) -> nn.Module:
        return Model()

    def values(self) -> dict[str, Any]:
        return {"values": vars(self.recipe)}

    def train_set(self) -> Ones:
        return Ones()

    def data_report(self) -> dict[str, Any]:
        return {name: {"images": 4} for name in self.needed}

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.recipe.lr)

    def measure(self, fabric: Any, model: Any, folder: Any, final: bool) -> dict[str, Any]:
        return {"weight": float(model.weight.detach())}

    def score(self, entry: dict[str, Any]) -> float:
        return -abs(entry["weight"] - 0.36)  # that of step 2

    @property
    def class_names(self) -> list[str]:
        return ["one"]

    def answer(self, fabric: Any, model: Any, image: Any, path: str = "") -> dict[str, Any]:
        return {"weight": model.weight.numpy()}

    def predict(self, fabric: Any, model: nn.Module, pictures: Any) -> str:
        raise NotImplementedError


def task(output: Path, name: str = "own", given: dict[str, Any] | None = None, **options: Any) -> Toy:
    defaults: dict[str, Any] = {
        "resume": False, "workers": 0, "save_every": 2, "log_every": 1, "max_bad_fraction": 0.0, "weights": None,
        "eval_only": False, "predict": None, "best": False, "trains": True,
    }  # fmt: skip
    return Toy(FinetuneOptions(output=output, **{**defaults, **options}), name, Values(), given or {})


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_training_evaluating_and_using(tmp_path):
    run(task(tmp_path / "run"))
    # w <- w - 0.1 * 2 * (w - 1), from 0
    weights = [1 - 0.8**step for step in range(5)]
    assert read(tmp_path / "run" / RESULTS)["weight"] == pytest.approx(weights[4])
    lines = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [(line["step"], line["weight"]) for line in lines] == [
        (2, pytest.approx(weights[2])), (4, pytest.approx(weights[4])),
    ]  # fmt: skip
    assert read(tmp_path / "run/best.json")["step"] == 2
    config = read(tmp_path / "run/config.json")
    assert list(config) == ["command", "recipe", "--weights", "values", "encoder", "data", "free"]
    assert read(tmp_path / "run/data_report.json") == {"train": {"images": 4}, "val": {"images": 4}}

    before = (tmp_path / "run" / RESULTS).read_bytes()
    run(task(tmp_path / "run", resume=True))  # finished: nothing to do
    run(task(tmp_path / "run", trains=False, eval_only=True))
    assert (tmp_path / "run" / RESULTS).read_bytes() == before
    run(task(tmp_path / "run", trains=False, eval_only=True, best=True))
    assert read(tmp_path / "run/results_best.json")["weight"] == pytest.approx(weights[2])


def test_a_batch_that_does_not_divide_leaves_the_folder_free(tmp_path):
    with pytest.raises(UserError, match="batch-size 3 must be a multiple"):
        run(task(tmp_path / "run", given={"batch_size": 3, "accumulate": 2}))
    run(task(tmp_path / "run"))
    assert (tmp_path / "run" / RESULTS).exists()


def test_an_unfinished_run_does_not_look_finished(tmp_path):
    run(task(tmp_path / "run"))
    for name in (RESULTS, "toy.safetensors", "checkpoints/step_00000004.safetensors"):
        (tmp_path / "run" / name).unlink()
    run(task(tmp_path / "run", trains=False, eval_only=True))
    assert read(tmp_path / "run/results_step_00000002.json")["weight"] == pytest.approx(0.36)
    assert not (tmp_path / "run" / RESULTS).exists()
    run(task(tmp_path / "run", resume=True))
    assert read(tmp_path / "run" / RESULTS)["weight"] == pytest.approx(1 - 0.8**4)


def test_the_average_is_what_is_measured_and_kept(tmp_path):
    run(task(tmp_path / "run", given={"ema": 0.5}))
    average = 0.0
    for step in range(1, 5):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * (1 - 0.8**step)
    assert read(tmp_path / "run" / RESULTS)["weight"] == pytest.approx(average)
    assert load_file(tmp_path / "run/toy.safetensors")["weight"].item() == pytest.approx(average)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"command": "train_toy", "recipe": "other"}, "has --recipe other and not own: name the old one"),
        ({"command": "train_det", "config": "x"}, "was made by tools/train_det.py and not by tools/train_toy.py"),
        ({"command": "train_toy", "recipe": "own"}, "does not hold what a run of tools/train_toy.py records (KeyError"),
        ({"command": "train_toy", "recipe": "own", "values": {"lrr": 1}}, "records (TypeError"),
    ],
)
def test_other_runs_are_not_resumed(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        run(task(tmp_path, resume=True))
    assert message in str(caught.value)


def test_a_damaged_model_is_named(tmp_path):
    run(task(tmp_path / "run"))
    path = tmp_path / "run/toy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.safetensors is damaged \(its checksum is wrong\)"):
        run(task(tmp_path / "run", trains=False, eval_only=True))


def test_processes_that_find_different_weights_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(task(tmp_path / "own"))
    used = task(tmp_path / "own", trains=False)
    model: Any = use_run(used, read(tmp_path / "own" / "config.json"))
    monkeypatch.setattr(trained, "gather", lambda items: [*items, "checkpoint step_00000002"])
    fabric: Any = SimpleNamespace(to_device=lambda value: value)
    with pytest.raises(UserError, match=r"different weights \(checkpoint step_00000002, toy.safetensors\)"):
        load_newest(used, model, tmp_path / "own", fabric)


def test_each_step_has_the_rate_of_its_place_in_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Values, "lr_factor", lambda self, step, total_steps: (step + 1) / total_steps)
    run(task(tmp_path / "run"))
    weight = 0.0
    for step in range(4):
        weight -= 0.1 * (step + 1) / 4 * 2 * (weight - 1)
    assert read(tmp_path / "run" / RESULTS)["weight"] == pytest.approx(weight)


def test_a_model_that_still_trains_is_used_without_a_lock(tmp_path: Path) -> None:
    """The newest weights of the run, as of `tools.predictor`; another tool's run is refused."""
    run(task(tmp_path / "own"))
    (tmp_path / "own" / "toy.safetensors").unlink()
    used = task(tmp_path / "own", trains=False)
    model: Any = use_run(used, read(tmp_path / "own" / "config.json"))
    fabric: Any = SimpleNamespace(to_device=lambda value: value)
    with RunFolder.open(tmp_path / "own", resume=True, artefact=RESULTS):
        assert load_newest(used, model, tmp_path / "own", fabric) == "checkpoint step_00000004"
    assert float(model.weight.detach()) == read(tmp_path / "own" / RESULTS)["weight"]
    with pytest.raises(UserError, match="holds no run of tools/train_toy.py"):
        use_run(used, {"command": "train_det"})
