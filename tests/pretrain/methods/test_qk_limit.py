"""The bound on queries and keys against numpy's decomposition."""

import numpy as np
import pytest
import torch

from pretrain.methods.qk_limit import EVERY, QueryKeyLimit, _may_exceed
from splitmask_backbones import VisionTransformer

DIM = 24


def encoder(scale: float = 1.0) -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(img_size=32, embed_dim=DIM, depth=2, num_heads=2)
    with torch.no_grad():
        for block in made.blocks:
            block.attn.qkv.weight.normal_(std=0.3 * scale)
    return made


def spectra(weight: torch.Tensor) -> list[np.ndarray]:
    return [np.linalg.svd(part.numpy(), compute_uv=False) for part in weight.detach().double().chunk(3)]


def test_what_is_above_is_cut_and_nothing_else():
    """Queries and keys against the nearest matrix of that spectral norm, made by numpy in float64."""
    small = encoder(0.01)
    bound = QueryKeyLimit(small, 2.0)
    small.load_state_dict(encoder().state_dict())
    before = {name: value.clone() for name, value in small.state_dict().items()}
    bound.after_step(EVERY)
    for name, value in small.state_dict().items():
        if not name.endswith("attn.qkv.weight"):
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value[2 * DIM :], before[name][2 * DIM :])  # values
        for start in (0, DIM):
            left, values, right = np.linalg.svd(before[name][start : start + DIM].double().numpy())
            assert values[0] > 2.4 and values[-1] < 1.0  # there is something to cut, and something to leave
            expected = left @ np.diag(np.minimum(values, 2.0)) @ right
            np.testing.assert_allclose(value[start : start + DIM].numpy(), expected, atol=2e-6)


def test_below_the_limit_not_a_byte_changes():
    made = encoder()
    largest = max(values[0] for block in made.blocks for values in spectra(block.attn.qkv.weight)[:2])
    before = {name: value.clone() for name, value in made.state_dict().items()}
    QueryKeyLimit(made, 1.001 * largest).after_step(EVERY)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.999, 1.0, 1.001, 1.1, 30.0])
@pytest.mark.parametrize("rank", [1, DIM])
def test_what_may_be_above_is_never_missed(share: float, rank: int) -> None:
    """Against the largest singular values themselves; the others of the stack do not matter."""
    torch.manual_seed(0)
    matrices = [torch.randn(DIM, rank) @ torch.randn(rank, DIM) for _ in range(3)]
    largest = [float(np.linalg.svd(matrix.numpy(), compute_uv=False)[0]) for matrix in matrices]
    found = _may_exceed(matrices, [largest[0] / share, 1e4 * largest[1], largest[2] / share])
    assert not found[1]
    if share >= 1:
        assert found[0] and found[2]
    elif share <= 0.9:
        assert not found[0] and not found[2], "a decomposition for nothing"


def test_only_every_so_many_steps():
    made = encoder(0.01)
    bound = QueryKeyLimit(made, 1.0)
    made.load_state_dict(encoder().state_dict())
    before = made.blocks[0].attn.qkv.weight.detach().clone()
    for done in range(1, EVERY):
        bound.after_step(done)
        assert torch.equal(made.blocks[0].attn.qkv.weight, before)
    bound.after_step(EVERY)
    assert not torch.equal(made.blocks[0].attn.qkv.weight, before)


def test_weights_that_begin_above_are_held_where_they_begin():
    """Another one's encoder would be spoiled by a cut before the first step has been made."""
    made = encoder()
    begun = [values[0] for block in made.blocks for values in spectra(block.attn.qkv.weight)[:2]]
    bound = QueryKeyLimit(made, 0.5)
    with torch.no_grad():
        for block in made.blocks:
            block.attn.qkv.weight *= 2.0
    bound.after_step(EVERY)
    held = [values[0] for block in made.blocks for values in spectra(block.attn.qkv.weight)[:2]]
    np.testing.assert_allclose(held, begun, rtol=1e-5)
