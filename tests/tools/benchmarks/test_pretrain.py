"""The counted operations against the closed form."""

import pytest
import torch

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
from tools.benchmarks import pretrain
from tools.benchmarks.pretrain import flops_per_image


def test_a_way_without_room_is_a_row_that_says_so(monkeypatch):
    def peak_of(call, device):
        if call.func is too_large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        call()
        return 7

    def small(batch):
        return None

    def broken(batch):
        raise RuntimeError("the blocks cannot be compiled\nand more")

    def too_large(batch):
        return None

    monkeypatch.setattr(pretrain, "peak_of", peak_of)
    monkeypatch.setattr(pretrain, "free_memory", lambda device: None)
    steps = {"eager": small, "graph": too_large, "compiled": small, "both": broken}
    peaks, reasons = pretrain.first_steps(steps, {}, {"other": "why"}, "cuda")
    assert list(steps) == list(peaks) == ["eager", "compiled"]
    assert set(reasons) == {"other", "graph", "both"} and "no memory beside" in reasons["graph"]
    assert reasons["both"] == "RuntimeError: the blocks cannot be compiled"
    with pytest.raises(torch.OutOfMemoryError):
        pretrain.first_steps({"eager": too_large}, {}, {}, "cuda")
    # A compiler works in the memory of a CPU's process, beside the step.
    assert pretrain.first_steps({"eager": small, "blocks compiled": small}, {}, {}, "cpu") == ({"eager": 7}, {})


def test_parts_equal_the_closed_form():
    dim, patches, words, seen = 48, 16, 64, 8
    encoder = VisionTransformer(img_size=64, embed_dim=dim, depth=3, num_heads=3)
    method = SplitMask(encoder, Tokenizer(random_projection(words, 768, 0)), decoder_depth=2)
    order = torch.stack([torch.randperm(patches) for _ in range(5)])
    batch = {
        "image": torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8),
        "ids_a": order[:, :seen],
        "ids_b": order[:, seen:],
    }

    def block(tokens):
        return 2 * tokens * 12 * dim**2 + 2 * 2 * tokens**2 * dim

    expected = {
        "encoder": 3 * 2 * (3 * block(seen) + 2 * seen * 768 * dim),
        "decoder": 3 * 2 * 2 * block(patches),
        "head": 3 * 2 * patches * dim * words,
        "tokenizer": 2 * patches * 768 * words,
    }
    assert flops_per_image(method, batch) == pytest.approx(expected)
