"""tools/benchmark.py: both models are what they claim to be, and options are checked."""

from __future__ import annotations

import functools
from concurrent.futures import Future

import pytest
import torch

from pretrain.recipes import Recipe
from tests.helpers.in_process import run_tool
from tools import benchmark
from tools.benchmarks import backbone, in_turns, loading, pretrain, steps


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


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_runs(precision, dtype, monkeypatch):
    """Forward in the precision that is timed, backward to every parameter, and no gradient left for the next step."""
    case = backbone.CASES["windows, relative positions (ViTDet)"]
    module = backbone.build("ours", "vit_tiny", 64, **case)
    monkeypatch.setattr(backbone, "build", lambda *args, **kwargs: module)
    step = backbone.make_step("ours", "vit_tiny", 64, 1, precision, "cpu", case)
    dtypes, gradients = set(), {}
    module.vit.blocks[0].mlp.fc1.register_forward_hook(lambda layer, args, output: dtypes.add(output.dtype))
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))
    for _ in range(2):
        gradients.clear()
        step()
        assert gradients.keys() == {name for name, _ in module.named_parameters()}
        assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients.values())
        assert all(parameter.grad is None for parameter in module.parameters())
    assert dtypes == {dtype}


def test_calls_are_timed_in_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = in_turns(calls, 2, "cpu")
    assert order == ["a", "b"] * 3, "the first round is not counted"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


RECIPE = Recipe(model="vit_tiny", img_size=64, batch_size=4, vocab_size=64, drop_path=0.0)


def test_the_pretraining_benchmark_prints_all_that_can_be_slow(capsys, monkeypatch):
    """Each way to make a step and each source of images is a row, or is named with the reason why it is none."""
    monkeypatch.setattr(pretrain, "PRODUCT_SIZE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(steps, "compile_blocks", lambda method: None)
    cannot = steps.Way({}, missing=lambda recipe, device: f"{device} is too old")
    broken = steps.Way({"odd": True})
    monkeypatch.setattr(steps, "WAYS", {**steps.WAYS, "odd": cannot, "broken": broken})
    pretrain.benchmark_pretraining(RECIPE, 1, "cpu", 0, num_images=2, num_starts=5)
    shown = capsys.readouterr().out
    assert "GFLOPs per image" in shown and "share of the matrix-product rate: " in shown
    assert "not measured: odd (cpu is too old)" in shown
    assert "not measured: broken (TypeError: " in shown
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.count("│") > 2]
    named = [name for name in steps.WAYS if name not in ("odd", "broken") and "CUDA graph" not in name]
    assert "not measured: CUDA graph (CUDA graphs need a GPU, and this is cpu)" in shown
    assert {*named, *loading.SOURCES} <= set(rows) and "resume, with a cache" in rows
    eager = next(line for line in shown.splitlines() if line.startswith("│ eager "))
    assert eager.split("│")[-2].strip() != "-" or "peak memory (this system does not tell)" in shown
    assert "checking" not in shown and "data wait" not in shown


def test_a_model_without_room_is_a_cell_of_the_table(monkeypatch):
    def no_room(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    class Pool:  # in this process, where the pretended error is
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return False

        def submit(self, call, *args):
            future = Future()
            try:
                future.set_result(call(*args))
            except RuntimeError as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(backbone, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(backbone, "_peak_of", no_room)
    assert backbone.peak_memory("ours") is None
    monkeypatch.setattr(backbone, "_peak_of", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backbone.peak_memory("ours")
    assert backbone.compared({"ours": 2e6, "detectron2": None}, 1e6, "{:.0f}") == ["2", "no memory", "-"]
    assert backbone.compared({"ours": 2e6, "detectron2": 4e6}, 1e6, "{:.0f}") == ["2", "4", "0.50"]


def test_two_models_that_do_not_fit_together_are_timed_one_after_the_other():
    held = set()

    class Step:
        def __init__(self, name):
            held.add(name)
            self.name = name
            if len(held) > 1:
                held.discard(name)
                raise torch.OutOfMemoryError("no room")

        def __call__(self):
            pass

        def __del__(self):
            held.discard(self.name)

    makers = {name: functools.partial(Step, name) for name in ("a", "b")}
    assert set(backbone.fastest(makers, 1, "cpu")) == {"a", "b"}
    held.add("other")
    with pytest.raises(torch.OutOfMemoryError):
        backbone.fastest({"a": makers["a"]}, 1, "cpu")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["backbon"], "unknown benchmark 'backbon': did you mean 'backbone'"),
        (["backbone", "--model", "vit_smal"], "did you mean 'vit_small'"),
        (["pretrain", "--precision", "16"], "unknown precision '16'"),
        (["pretrain", "--recipe", "smal"], "did you mean 'small'"),
    ],
)
def test_wrong_options(argv, message):
    result = run_tool(benchmark.main, *argv)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
