"""tools/benchmark.py: both models are what they claim to be, and options are checked."""

from __future__ import annotations

import pytest
import torch

from pretrain.recipes import Recipe
from tests.helpers.in_process import run_tool
from tools import benchmark
from tools.benchmarks import backbone, pretrain
from tools.benchmarks.timing import in_turns


@pytest.mark.detectron2
@pytest.mark.parametrize("case", backbone.CASES.values(), ids=str)
def test_both_models_have_the_same_parameters(case):
    ours, theirs = (backbone.build(whose, "vit_tiny", 64, **case) for whose in ("ours", "detectron2"))
    shapes = [{n: tuple(p.shape) for n, p in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    with torch.no_grad():
        theirs.load_state_dict(ours.state_dict())
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_a_step_goes_forward_and_backward(monkeypatch):
    build, built, hooks = backbone.build, [], []

    def build_and_watch(*args, **kwargs):
        built.append(build(*args, **kwargs))
        for parameter in built[-1].parameters():
            parameter.register_hook(lambda gradient: hooks.append(bool(gradient.isfinite().all())))
        return built[-1]

    monkeypatch.setattr(backbone, "build", build_and_watch)
    for precision in ("32", "bf16"):
        hooks.clear()
        backbone.make_step("ours", "vit_tiny", 64, 1, precision, backbone.CASES["windows"])()
        parameters = list(built[-1].parameters())
        assert len(hooks) == len(parameters) and all(hooks), "each parameter gets a gradient"
        assert all(parameter.grad is None for parameter in parameters), "and the next step starts anew"


def test_calls_are_timed_in_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = in_turns(calls, 2, "cpu")
    assert order == ["a", "b"] * 3, "the first round is not counted"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_pretraining_benchmark_prints_its_share(capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "PRODUCT_SIZE", {"cpu": 64, "cuda": 64})
    pretrain.pretrain_step(Recipe(model="vit_tiny", img_size=64, batch_size=2, vocab_size=64), 1)
    shown = capsys.readouterr().out
    assert "GFLOPs per image" in shown and "share of the matrix-product rate: " in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["backbon"], "unknown benchmark 'backbon': did you mean 'backbone'"),
        (["backbone", "--model", "vit_smal"], "did you mean 'vit_small'"),
        (["pretrain", "--precision", "16"], "unknown precision '16'"),
    ],
)
def test_wrong_options(argv, message):
    result = run_tool(benchmark.main, *argv)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
