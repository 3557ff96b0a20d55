"""The promises of the tools on a GPU: bytes after a kill, bf16, monitors, evaluation, prediction, several processes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.runs import kill_when, strict_json
from tests.helpers.small_runs import ARTEFACTS, command, error_of, make_inputs, skip_without_its_library, start

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
STEPS = ("--steps", "6")
SECONDS = 900.0
"""Of a run at most: what is compiled for a card first, such as a deterministic RoIAlign, takes minutes."""
PRECISION = {
    "pretrain": ["--precision", "bf16"],
    "train_cls": ["--precision", "bf16"],
    "train_det": ["precision=bf16"],
    "train_seg": ["precision=bf16"],
}
FINETUNINGS = ("train_det", "train_seg", "train_cls")
WEIGHTS = {"pretrain": "encoder", "train_det": "detector", "train_seg": "segmentor", "train_cls": "classifier"}


def words(tool: str, data: Path, output: Path, *more: object) -> list[str]:
    return command(tool, data, output, *STEPS, "--device", DEVICE, "--workers", "2", *more)


def finished(line: list[str]) -> str:
    process = start(line)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stdout + stderr
    return stderr


def killed_and_resumed(tool: str, tmp_path: Path, *more: object) -> tuple[Path, Path]:
    """Returns the folder of a quiet run, and that of one that was killed after its first checkpoint."""
    data, longer = make_inputs(tool, tmp_path / "data"), ["--steps", "20", *more]
    stderr = finished(words(tool, data, tmp_path / "whole", *longer))
    assert "--compile:" not in stderr and "--cuda-graph:" not in stderr, "it went on without what was asked for"
    run = tmp_path / "run"
    kill_when(start(words(tool, data, run, *longer)), run, "checkpoints/step_*.safetensors", SECONDS)
    assert not (run / f"{WEIGHTS[tool]}.safetensors").exists()
    finished(words(tool, data, run, *longer, "--resume"))
    assert strict_json(run / "config.json")["free"]["device"] == DEVICE
    return tmp_path / "whole", run


@pytest.mark.parametrize(
    ("tool", "more"),
    [
        ("pretrain", ["--deterministic"]),
        ("pretrain", ["--deterministic", "--precision", "bf16", "--drop-path", "0.2"]),
        ("pretrain", ["--deterministic", "--crops", "device"]),
        ("pretrain", ["--deterministic", "--cuda-graph", "true", "--drop-path", "0.2"]),
        ("pretrain", ["--deterministic", "--cuda-graph", "true", "--qk-limit", "0.5"]),
        ("pretrain", ["--deterministic", "--cuda-graph", "true", "--precision", "bf16"]),
        ("pretrain", ["--deterministic", "--compile", "on"]),
        ("pretrain", ["--deterministic", "--accumulate", "2"]),
        ("train_det", ["--deterministic"]),
        ("train_cls", ["--deterministic"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:]).replace("--", "") or "plain",
)
def test_the_bytes_after_a_kill_are_those_of_a_quiet_run(tool: str, more: list[str], tmp_path: Path) -> None:
    skip_without_its_library(tool)
    whole, run = killed_and_resumed(tool, tmp_path, *more)
    name = f"{WEIGHTS[tool]}.safetensors"
    assert (whole / name).read_bytes() == (run / name).read_bytes()
    artefact = ARTEFACTS.get(tool, "results.json")
    assert (whole / artefact).read_bytes() == (run / artefact).read_bytes()


def test_a_segmentor_goes_on_after_a_kill(tmp_path: Path) -> None:
    """To rounding: torch has no deterministic gradient of UperNet's pooling on a GPU."""
    skip_without_its_library("train_seg")
    states = [load_file(folder / "segmentor.safetensors") for folder in killed_and_resumed("train_seg", tmp_path)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("tool", sorted(PRECISION))
def test_bf16_learns_about_what_float32_does(tool: str, tmp_path: Path) -> None:
    skip_without_its_library(tool)
    data = make_inputs(tool, tmp_path / "data")
    losses: list[list[float]] = []
    for name, more in (("float32", []), ("bf16", PRECISION[tool])):
        finished(words(tool, data, tmp_path / name, *more))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert all(math.isfinite(loss) for loss in losses[1])
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=0.1)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("method", ["splitmask", "beit"])
def test_a_monitor_looks_on_the_gpu(method: str, tmp_path: Path) -> None:
    data = make_inputs("pretrain", tmp_path / "data")
    more = ["--precision", "bf16", "--method", method, "--deterministic"]
    finished(words("pretrain", data, tmp_path / "run", *more, "--monitor-every", "3"))
    finished(words("pretrain", data, tmp_path / "blind", *more))
    seen: list[dict[str, Any]] = [json.loads(x) for x in (tmp_path / "run/monitor.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in seen] == [3, 6]
    assert all(entry["targets_entropy_bits"] > 0 for entry in seen)
    run, blind = ((tmp_path / name / "encoder.safetensors").read_bytes() for name in ("run", "blind"))
    assert run == blind, "a look changes nothing"


@pytest.mark.parametrize("tool", FINETUNINGS)
def test_evaluation_and_prediction_of_a_finished_run(tool: str, tmp_path: Path) -> None:
    skip_without_its_library(tool)
    data, run = make_inputs(tool, tmp_path / "data"), tmp_path / "run"
    finished(words(tool, data, run))
    results = strict_json(run / "results.json")
    pictures = [path for path in sorted(data.rglob("*")) if path.suffix in (".jpg", ".png") and "val" in str(path)]
    finished(words(tool, data, run, "--eval-only", "--predict", pictures[0]))
    again = strict_json(run / "results.json")
    assert again.keys() == results.keys()
    assert list((run / "predictions").iterdir())


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    data = make_inputs("pretrain", tmp_path / "data")
    count = torch.cuda.device_count() + 1
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=29557"]
    process = start([*launcher, *words("pretrain", data, tmp_path / "run")[1:]])
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and f"--nproc-per-node={count}" in lines[0], stderr
    assert not (tmp_path / "run/encoder.safetensors").exists()


def test_a_second_run_in_the_same_folder_is_refused_and_one_beside_it_shares_the_gpu(tmp_path: Path) -> None:
    data = make_inputs("pretrain", tmp_path / "data")
    first = start([*words("pretrain", data, tmp_path / "run"), "--steps", "400"])
    for _ in iter(first.stdout.readline, ""):  # type: ignore[union-attr]
        if (tmp_path / "run/config.json").exists():
            break
    second = start(words("pretrain", data, tmp_path / "run", "--resume"))
    assert "is in use by another process" in error_of(second.communicate(timeout=120)[1])
    finished(words("pretrain", data, tmp_path / "other"))
    first.kill()
    first.communicate()


def test_compiled_blocks_and_a_graph_learn_what_the_ordinary_step_learns(tmp_path: Path) -> None:
    data = make_inputs("pretrain", tmp_path / "data")
    losses = []
    compiled, graph = ["--compile", "on"], ["--cuda-graph", "true"]
    ways = {"plain": [], "compiled": compiled, "graph": graph, "both": [*compiled, *graph]}
    for name, more in ways.items():
        stderr = finished(words("pretrain", data, tmp_path / name, "--drop-path", "0.2", *more))
        assert "--compile:" not in stderr and "--cuda-graph:" not in stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert all(found == pytest.approx(losses[0], rel=1e-3) for found in losses[1:])
