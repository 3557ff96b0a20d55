"""--deterministic: recorded and kept by a resume; on a CPU no byte is another; on a GPU torch is told."""

import json
from contextlib import suppress

import pytest
import torch

from pretrain.training import distributed
from pretrain.training.options import RunOptions
from splitmask_backbones.vit import gather_tokens
from tests.helpers.pretrain_tool import ENCODER, OPTIONS, run, state_of


def test_it_changes_no_byte_on_a_cpu_and_a_resume_keeps_it(images, tmp_path):
    words = [*OPTIONS, "--data", images, "--device", "cpu"]
    assert run(*words, "--output", tmp_path / "plain").returncode == 0
    assert run(*words, "--steps", "6", "--output", tmp_path / "with", "--deterministic").returncode == 0
    assert state_of(tmp_path / "with") == state_of(tmp_path / "plain")
    recorded = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "with")]
    assert [config["free"]["deterministic"] for config in recorded] == [False, True]
    options = RunOptions(tmp_path, True, 0, 1, 1, 0.0)
    assert [options.is_deterministic(config) for config in (None, {}, *recorded)] == [False, False, False, True]
    assert (tmp_path / "with" / ENCODER).exists()


def test_the_algorithms_make_the_same_bytes_on_a_cpu(images, tmp_path, monkeypatch):
    """What a GPU is told, told to a CPU: nothing that pre-training does is without an algorithm there."""
    words = [*OPTIONS, "--data", images, "--device", "cpu", "--output"]
    assert run(*words, tmp_path / "plain").returncode == 0
    told = []

    def use(on):
        told.append(on)
        original(True)

    original = distributed.use_deterministic
    monkeypatch.setattr(distributed, "use_deterministic", use)
    assert run(*words, tmp_path / "with").returncode == 0
    assert torch.are_deterministic_algorithms_enabled() and told == [False]
    assert state_of(tmp_path / "with") == state_of(tmp_path / "plain")


@pytest.mark.parametrize("on", [True, False])
def test_what_torch_is_told(on, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(not on)
    distributed.use_deterministic(on)
    assert torch.are_deterministic_algorithms_enabled() == on
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory != on
    assert ("CUBLAS_WORKSPACE_CONFIG" in distributed.os.environ) == on


def test_counts_may_take_any_algorithm():
    torch.use_deterministic_algorithms(True)
    with suppress(ZeroDivisionError), distributed.any_algorithm():
        assert not torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert torch.are_deterministic_algorithms_enabled()


def test_tokens_are_gathered_by_rows():
    """What a GPU takes for the sake of speed: the same values and gradients, of a table for all images as well."""
    ids = torch.rand(3, 6).argsort(1)[:, :4]
    for rows in (3, 1):
        tokens = torch.randn(rows, 6, 5, requires_grad=True)
        found = []
        for on in (False, True):
            torch.use_deterministic_algorithms(on)
            gathered = gather_tokens(tokens, ids)
            found.append((gathered, *torch.autograd.grad((gathered**2).sum(), tokens)))
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
