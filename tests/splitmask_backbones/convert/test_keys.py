"""splitmask_backbones.convert.keys: names of other layouts, there and back without a loss."""

from __future__ import annotations

import re

import pytest
import torch

from splitmask_backbones import VisionTransformer, build_pyramid
from splitmask_backbones.convert.keys import (
    FROM_VITDET,
    TO_VITDET,
    hf_to_ours,
    is_simple_pyramid,
    ours_to_hf,
    to_beit,
    to_hf,
    to_mmseg,
    to_ours,
    translate,
)

SIZES = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "use_class_token": True}
KINDS = [{}, {"layer_scale": 0.1, "positions": "none", "relative_position_bias": "per_block"}]


def state_of(**kwargs):
    torch.manual_seed(0)
    state = VisionTransformer(**{**SIZES, **kwargs}).state_dict()
    return {name: torch.randn_like(value) for name, value in state.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kwargs", KINDS)
def test_hugging_faces_names_and_back(kwargs):
    state = state_of(**kwargs)
    theirs = to_hf(state, with_key_bias=True)
    assert not any(name.startswith("blocks.") for name in theirs)
    back, dropped, unexpected = to_ours(theirs, from_hf=True)
    assert_same(back, state)
    assert dropped == {} and unexpected == []


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"),
        ("encoder.layer.11.attention.attention.query.bias", "blocks.11.attn.query.bias"),
        ("encoder.layer.0.attention.output.dense.bias", "blocks.0.attn.proj.bias"),
        ("encoder.layer.0.output.dense.weight", "blocks.0.mlp.fc2.weight"),
        ("encoder.layer.0.layernorm_after.weight", "blocks.0.norm2.weight"),
        ("layernorm.weight", "norm.weight"),
        ("encoder.layer.3.lambda_2", "blocks.3.ls2.gamma"),
        ("encoder.relative_position_bias.relative_position_bias_table", "relative_position_bias_table"),
    ],
)
def test_published_names(theirs, ours):
    assert (hf_to_ours(theirs), ours_to_hf(ours)) == (ours, theirs)


@pytest.mark.parametrize("kwargs", [*KINDS, {"positions": "none", "relative_position_bias": "shared"}])
def test_beits_names_and_back_lose_the_bias_of_the_keys_alone(kwargs):
    state = state_of(**kwargs)
    back, _, unexpected = to_ours(to_beit(state), from_hf=False)
    for name in state:
        if name.endswith("qkv.bias"):
            state[name].chunk(3)[1].zero_()
    assert_same(back, state)
    assert unexpected == []


@pytest.mark.parametrize("as_beit", [False, True])
def test_mmsegs_names_are_all_translated(as_beit):
    names = to_mmseg(state_of(**KINDS[as_beit]), as_beit)
    assert {"ln1.weight", "patch_embed.projection.bias", "layers.1.ffn.layers.0.0.weight"} <= set(names)
    assert ("layers.0.attn.q_bias" if as_beit else "layers.0.attn.attn.in_proj_bias") in names
    assert not any(re.search(r"blocks|norm|fc1", name) for name in names)


def test_what_is_dropped_and_what_nothing_explains():
    tensors = {**state_of(), "head.weight": torch.zeros(1), "decoder_embed.bias": torch.zeros(1)}
    state, dropped, unexpected = to_ours({**tensors, "blocks.0.attn.gate": torch.zeros(1)}, from_hf=False)
    assert set(dropped) == {"head.weight", "decoder_embed.bias"} and unexpected == ["blocks.0.attn.gate"]
    assert set(state) == set(state_of())


def test_every_module_of_the_simple_pyramid_has_a_name_in_vitdet():
    pyramid = build_pyramid("simple", VisionTransformer(**SIZES), 8).state_dict()
    theirs = translate(pyramid, TO_VITDET)
    assert all(is_simple_pyramid(name) for name in theirs) and len(theirs) == len(pyramid)
    assert_same(translate(theirs, FROM_VITDET), pyramid)
    with pytest.raises(KeyError, match="simfp_9"):
        translate({"simfp_9.0.weight": torch.zeros(1)}, FROM_VITDET)
