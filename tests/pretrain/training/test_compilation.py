"""Compiled blocks: the losses of eager ones, one graph for blocks of a kind, eager where compiling fails."""

import copy
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training import compilation
from pretrain.training.compilation import AUTO_STEPS, compile_blocks, pays
from splitmask_backbones import VisionTransformer
from tests.helpers.splitmask import make_batch


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
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_losses_of_the_real_backend(precision):
    eager, method = build(2), build(2)
    compile_blocks(method)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found, expected = losses(method), losses(eager)
    assert found == pytest.approx(expected, abs=1e-5 if precision == torch.float32 else 2e-2)
    assert not _failed(method)


def _failed(method):
    return method.encoder.blocks[0].forward.failed


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
    with caplog.at_level(logging.INFO, "pretrain"):
        assert pays("auto", cuda, AUTO_STEPS)
        assert not pays("auto", cuda, AUTO_STEPS - 1)
        assert not pays("auto", cpu, 10**6)
        assert [text.split(" (")[0] for text in caplog.messages] == [
            "--compile auto: compiled",
            "--compile auto: not compiled",
            "--compile auto: not compiled",
        ]
    assert pays("on", cpu, 1) and not pays("off", cuda, 10**6)
    assert compilation.AUTO_STEPS == 5000
