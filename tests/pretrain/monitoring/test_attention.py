"""Attention entropy against a loop over tokens, and at both of its ends; watching leaves nothing behind."""

import math

import pytest
import torch

from pretrain.monitoring.attention import attention_entropy, watched
from splitmask_backbones import VisionTransformer


def encoder(**kwargs):
    torch.manual_seed(0)
    return VisionTransformer(img_size=64, embed_dim=24, depth=3, num_heads=3, **kwargs).eval()


@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_the_mean_over_images_heads_and_tokens(with_bias):
    attention = encoder().blocks[0].attn
    torch.nn.init.normal_(attention.qkv.weight)
    x, bias = torch.randn(2, 5, 24), torch.randn(1, 3, 5, 5) if with_bias else None
    expected = []
    query, key, _ = (attention.qkv(x)[..., 24 * i : 24 * (i + 1)] for i in range(3))
    for image in range(2):
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            for token in range(5):
                scores = [float(query[image, token, part] @ key[image, other, part]) / 8**0.5 for other in range(5)]
                if bias is not None:
                    scores = [score + float(bias[0, head, token, other]) for other, score in enumerate(scores)]
                total = sum(math.exp(score) for score in scores)
                shares = [math.exp(score) / total for score in scores]
                expected.append(-sum(share * math.log(share) for share in shares) / math.log(5))
    assert float(attention_entropy(attention, x, bias)) == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_entropy(attention, x, bias)
    assert float(found) == pytest.approx(sum(expected) / len(expected), rel=1e-4), "not rounded"


def test_it_goes_from_one_token_to_all():
    attention = encoder().blocks[0].attn
    x = torch.randn(2, 5, 24)
    torch.nn.init.zeros_(attention.qkv.weight)
    assert float(attention_entropy(attention, x)) == pytest.approx(1.0)
    torch.nn.init.normal_(attention.qkv.weight, std=1e4)
    assert float(attention_entropy(attention, x)) < 0.01


def test_blocks_with_decomposed_relative_positions_are_left_out():
    model = encoder(use_rel_pos=True)
    with watched(model.blocks) as entropies:
        model(torch.randn(2, 3, 64, 64))
    assert entropies == [[], [], []]


@pytest.mark.parametrize("kwargs", [{}, {"use_class_token": True, "relative_position_bias": "per_block"}])
def test_every_pass_within_is_seen_and_none_after(kwargs):
    model, images = encoder(**kwargs), torch.randn(2, 3, 64, 64)
    before = model(images)
    with watched(model.blocks) as entropies:
        assert torch.equal(model(images), before)
        model(images)
    model(images)
    assert [len(of_block) for of_block in entropies] == [2, 2, 2]
    assert all(value.shape == (2,) and 0 < float(value[0]) <= 1 for of_block in entropies for value in of_block)
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
