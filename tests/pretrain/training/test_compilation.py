"""Compiled blocks: the losses of eager ones, one graph for blocks of a kind, eager where compiling fails."""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training import compilation
from pretrain.training.compilation import AUTO_STEPS, compile_blocks, has_failed, pays, say_choice
from pretrain.training.distributed import make_fabric
from pretrain.training.step import train_step
from splitmask_backbones import VisionTransformer
from tests.helpers.paths import ROOT
from tests.helpers.pretrain_tool import ENCODER, OPTIONS, error_of, run
from tests.helpers.splitmask import make_batch
from tools.pretraining import train


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(depth=4, drop_path=0.5):
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=depth, num_heads=2, drop_path_rate=drop_path)
    return SplitMask(encoder, Tokenizer(random_projection(32, 768, 0)))


def losses(method, steps=3):
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3, fused=False)
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = method(make_batch())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_losses_are_those_of_eager_blocks_and_no_name_changes():
    eager, method = build(), build()
    names = list(method.state_dict())
    assert compile_blocks(method, "aot_eager") == 6  # the decoder's two as well
    assert losses(method) == pytest.approx(losses(eager), abs=1e-5)
    assert list(method.state_dict()) == names
    changed = [(a - b).abs().max() for a, b in zip(method.parameters(), eager.parameters(), strict=True)]
    assert max(changed) < 1e-4


@pytest.mark.slow
def test_losses_of_the_real_backend():
    eager, method = build(2), build(2)
    compile_blocks(method)
    assert losses(method) == pytest.approx(losses(eager), abs=1e-5)
    assert not method.encoder.blocks[0].forward.failed


def test_graphs_do_not_grow_with_depth_and_rates():
    """In the encoder a block that drops nothing and those that do; in the decoder the first again, at its own N."""

    def graphs(depth):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        method = build(depth)
        compile_blocks(method, counter)
        losses(method, steps=2)
        return counter.frame_count

    assert graphs(3) == graphs(9) == 3


def test_other_batch_sizes_end_in_one_graph_for_all():
    counter = CompileCounterWithBackend("eager")
    method = build(2)
    compile_blocks(method, counter)
    for size in range(2, 4):
        method(make_batch(batch=size))
    before = counter.frame_count
    for size in range(4, 14):
        method(make_batch(batch=size))
    assert before <= 6
    assert counter.frame_count == before


def test_a_look_in_evaluation_mode_compiles_nothing():
    counter = CompileCounterWithBackend("eager")
    method = build(2).eval()
    compile_blocks(method, counter)
    method.observe(make_batch())
    assert counter.frame_count == 0


def test_a_failure_is_one_warning_and_the_run_goes_on(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    eager, method = build(), build()
    compile_blocks(method, broken)
    with caplog.at_level(logging.WARNING, "pretrain"):
        found = losses(method)
    assert found == losses(eager)
    assert len(caplog.messages) == 1
    assert "goes on without compiled blocks" in caplog.text and "no C++ compiler" in caplog.text


def test_a_backward_pass_that_does_not_compile_is_found_in_the_forward_pass(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no kernel for the backward pass")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    eager, method = build(2), build(2)
    compile_blocks(method, backend)
    assert not has_failed(method)
    with caplog.at_level(logging.WARNING, "pretrain"):
        assert losses(method, 1) == losses(eager, 1)
    assert "no kernel for the backward pass" in caplog.text and has_failed(method)


def raises(error):
    """A compiler whose code fails when it is run."""

    def run(*args):
        raise error

    run._boxed_call = True  # as the engine of torch calls it
    return lambda graph, inputs: run


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_code_that_fails_when_it_is_run_is_one_warning_and_the_run_goes_on(where, caplog):
    broken, kept = raises(RuntimeError("no valid triton configs")), lambda graph, inputs: graph
    passes = (broken, kept) if where == "forward" else (kept, broken)
    eager, method = build(2), build(2)
    compile_blocks(method, aot_autograd(fw_compiler=passes[0], bw_compiler=passes[1]))
    with caplog.at_level(logging.WARNING, "pretrain"):
        assert losses(method) == losses(eager)
    assert len(caplog.messages) == 1 and "no valid triton configs" in caplog.text and has_failed(method)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()], ids=repr)
def test_a_lack_of_memory_and_a_stop_are_not_the_compilers(error):
    method = build(2)
    compile_blocks(method, raises(error))
    with pytest.raises(type(error)):
        method(make_batch())
    assert not has_failed(method)


def test_the_trial_leaves_nothing():
    """Code that is the eager one makes the bytes of a run without; both passes were tried before."""
    passes = []

    def counted(name):
        def compiler(graph, inputs):
            def run(args):
                passes.append(name)
                return graph(*args)

            run._boxed_call = True
            return run

        return compiler

    eager, method = build(2), build(2)
    compile_blocks(method, aot_autograd(fw_compiler=counted("forward"), bw_compiler=counted("backward")))
    torch.manual_seed(5)
    eager(make_batch())
    expected = torch.get_rng_state()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(5)
    method(make_batch())
    assert passes.count("forward") == 2 * passes.count("backward") == 8  # four blocks
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(parameter.grad is None for parameter in method.parameters())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    method(make_batch())
    assert passes.count("backward") == 4, "once for each shape"
    torch._dynamo.reset()
    method = build(2)
    compile_blocks(method, "eager")
    assert losses(method) == losses(eager)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "gradient caching"])
def test_micro_batches(cached):
    found = []
    for compiled in (False, True):
        fabric, method = make_fabric(device="cpu"), build(2)
        if compiled:
            compile_blocks(method, "eager")
        model, wrapped = fabric.setup(method, torch.optim.AdamW(method.parameters(), lr=3e-3, fused=False))
        method.train()
        values = []
        for step in range(2):
            parts = [{name: value[i : i + 2] for name, value in make_batch(4).items()} for i in (0, 2)]
            torch.manual_seed(step)
            cache = method if cached else None
            made = train_step(fabric, model, wrapped, iter(parts), accumulate=2, clip_grad=3.0, grad_cache=cache)
            values.append({name: value.item() for name, value in made.items()})
        found.append((values, method.state_dict()))
        assert not has_failed(method)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_without_a_compiler_the_real_backend_goes_on(caplog, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    eager, method = build(2), build(2)
    compile_blocks(method)
    with caplog.at_level(logging.WARNING, "pretrain"):
        assert losses(method, 1) == losses(eager, 1)
    assert len([text for text in caplog.messages if text.startswith("--compile")]) == 1


def test_a_copy_runs_its_own_blocks():
    method = build(2)
    compile_blocks(method, "eager")
    twin = copy.deepcopy(method)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    assert twin(make_batch())["loss"] != method(make_batch())["loss"]
    assert twin.encoder.blocks[0].forward.block is twin.encoder.blocks[0]


def test_auto_compiles_long_runs_on_a_gpu_and_says_so(caplog):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pays("auto", cuda, AUTO_STEPS)
    assert not pays("auto", cuda, AUTO_STEPS - 1)
    assert not pays("auto", cpu, 10**6)
    assert pays("on", cpu, 1) and not pays("off", cuda, 10**6)
    with caplog.at_level(logging.INFO, "pretrain"):
        for choice, chosen in (("auto", True), ("auto", False), ("on", True), ("off", False)):
            say_choice(choice, chosen)
    said = [text.split(" (")[0] for text in caplog.messages]
    assert said == ["--compile auto: compiled", "--compile auto: not compiled"]
    assert compilation.AUTO_STEPS == 5000


def test_the_tool_compiles_says_so_and_keeps_it_on_a_resume(image_folder, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(train, "compile_blocks", used.append)
    words = [*OPTIONS, "--steps", "2", "--data", image_folder, "--device", "cpu", "--output"]
    assert run(*words, tmp_path / "on", "--compile", "on").returncode == 0
    (tmp_path / "on" / ENCODER).unlink()
    assert run(*words, tmp_path / "on", "--resume").returncode == 0
    assert len(used) == 2 and all(isinstance(model, SplitMask) for model in used)
    assert "--compile was on and is now off" in error_of(run(*words, tmp_path / "on", "--resume", "--compile", "off"))
    auto = run(*words, tmp_path / "auto", "--compile", "auto")
    assert auto.returncode == 0 and "--compile auto: not compiled" in auto.stdout
    assert len(used) == 2
    recorded = [json.loads((tmp_path / name / "config.json").read_text())["free"] for name in ("on", "auto")]
    assert [free["compiled"] for free in recorded] == [True, False]
    assert {free["device"] for free in recorded} == {"cpu"}


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from pretrain.training.compilation import compile_blocks
from pretrain.training.distributed import make_fabric
from pretrain.training.optimizer import adamw
from pretrain.training.static_step import StaticStep
from pretrain.training.step import train_step
from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
torch.manual_seed(1)
order = torch.stack([torch.randperm(16) for _ in range(4)])
images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
fabric = make_fabric(device="cpu")
found = []
for way in ("plain", "compiled", "static"):
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.5)
    method = SplitMask(encoder, Tokenizer(random_projection(32, 768, 0)))
    if way == "compiled":
        compile_blocks(method, "eager")
    optimizer = adamw([{"params": list(method.parameters()), "lr": 1e-3, "weight_decay": 0.05}], fabric.device)
    model, wrapped = fabric.setup(method, optimizer)
    static = StaticStep(fabric, model, optimizer, clip_grad=3.0) if way == "static" else None
    losses = []
    for step in range(3):
        batch = {"image": images // (1 + fabric.global_rank + step), "ids_a": order[:, :8], "ids_b": order[:, 8:]}
        torch.manual_seed(step)
        data = iter([batch])
        values = static(data) if static else train_step(fabric, model, wrapped, data, clip_grad=3.0)
        losses.append(values["loss"].item())
    found.append([*losses, *(p.detach().double().sum().item() for p in method.parameters())])
torch.save(found, f"{sys.argv[2]}/{fabric.global_rank}.pt")
"""


def test_two_processes_compiled_and_static(tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    env = {**{k: v for k, v in os.environ.items() if k != "RANK"}, "OMP_NUM_THREADS": "1"}
    words = [*launch, "--master-port=29558", str(tmp_path / "script.py"), str(ROOT), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for plain, compiled, static in ranks:
        assert compiled == pytest.approx(plain, abs=1e-4)
        assert compiled[:3] == pytest.approx(plain[:3], abs=1e-5)
        assert static == plain
    assert ranks[0][0][3:] == ranks[1][0][3:]  # the ranks keep the same weights
