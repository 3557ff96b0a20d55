"""splitmask_backbones.convert.export and references: the proof compares with what the other library computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitmask_backbones import VisionTransformer
from splitmask_backbones.convert.export import export
from splitmask_backbones.convert.hf_models import is_beit
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.convert.names import TARGETS
from splitmask_backbones.convert.references import MAP, TOKENS, loaded, timm_vit

pytest.importorskip("timm", reason="the extra 'timm' is not installed")

SIZES = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 1}
LIBRARIES = {"mmseg": "mmseg", "hf": "transformers", "onnx": "onnxruntime"}


def encoder_of(**kwargs):
    torch.manual_seed(0)
    encoder = VisionTransformer(**{**SIZES, **kwargs}).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_a_model_that_gives_the_encoders_output(target):
    if target in LIBRARIES:
        pytest.importorskip(LIBRARIES[target], reason="the library is not installed")
    encoder = encoder_of(use_class_token=True)
    made = export(encoder, target, {})
    images = torch.randn(2, 3, 64, 64)
    expected = made.encoder(images) if made.kind == TOKENS else made.encoder.forward_maps(images)[-1]
    torch.testing.assert_close(made.forward(images), expected, rtol=0, atol=1e-4)
    assert made.kind == (MAP if target in ("detectron2", "mmseg") else TOKENS)


def test_a_pyramid_goes_to_detectron2_alone():
    pyramid = {"levels.2.lateral.weight": torch.ones(1)}
    assert "backbone.simfp_4.0.weight" in export(encoder_of(), "detectron2", pyramid).state
    made = export(encoder_of(), "timm", pyramid)
    assert made.dropped == {"pyramid.levels.2.lateral.weight": "timm's model has no pyramid"}
    assert not any("simfp" in name or "pyramid" in name for name in made.state)


def test_a_model_takes_exactly_its_state():
    state = nn.Linear(2, 2).state_dict()
    assert not loaded(nn.Linear(2, 2), state).training
    with pytest.raises(ValueError, match=r"Linear does not take the tensors: .*bias"):
        loaded(nn.Linear(2, 2), {"weight": state["weight"]})


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(ValueError, match=r"proved with no_such_library, .* install the extra 'segmentation'"):
        need("no_such_library", "segmentation")


def test_what_makes_a_beit():
    assert [is_beit(encoder_of(**kwargs).config) for kwargs in ({}, {"layer_scale": 0.1})] == [False, True]
    assert is_beit(encoder_of(positions="none", relative_position_bias="shared").config)


def test_timms_model_is_as_the_arguments_say():
    model = timm_vit({**encoder_of(use_class_token=True, num_registers=2, layer_norm_eps=1e-5).config})
    assert (model.num_prefix_tokens, model.norm.eps, len(model.blocks)) == (3, 1e-5, 2)
