"""splitmask_backbones.convert.hf_config: every field of config.json is used, harmless, or refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitmask_backbones.convert.hf_config import (
    HARMLESS,
    MODELS,
    ONLY,
    USED,
    check_fields,
    check_sizes,
    encoder_arguments,
    library_config,
)

transformers = pytest.importorskip("transformers", reason="the extra 'convert' is not installed")

PATH = Path("folder/model.safetensors")
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
SIZES |= {"patch_size": 8, "intermediate_size": 64}
DERIVED = {"out_features", "out_indices", "stage_names", "add_fpn"}  # which the library checks against each other
ABOUT = {"architectures", "dtype", "id2label", "label2id", "transformers_version", "_name_or_path"}


def config_of(kind: str, **kwargs: Any) -> dict[str, Any]:
    config_class = getattr(transformers, MODELS[kind][0])
    return config_class(**{**SIZES, **kwargs}).to_dict()


def output_of(kind: str, config: dict[str, Any], state: dict[str, torch.Tensor] | None) -> Any:
    model = getattr(transformers, MODELS[kind][1])(library_config(PATH, {**config, "model_type": kind}))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if state is not None:
        kept = {name: value for name, value in state.items() if "pooler" not in name}
        model.load_state_dict(kept, strict=False)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 16, 16, generator=generator)
    noise = {"noise": torch.arange(4.0)[None]} if kind == "vit_mae" else {}
    with torch.no_grad():
        return model.eval()(images, **noise).last_hidden_state, model.state_dict()


def other(value: Any) -> Any:
    """Returns another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return 0.5 - value / 2
    return value + 1 if isinstance(value, int) else value


@pytest.mark.parametrize("kind", MODELS)
def test_every_field_that_the_library_writes_is_known(kind):
    unknown = set(config_of(kind)) - USED - HARMLESS - set(ONLY)
    assert not unknown
    check_fields(PATH, config_of(kind))


@pytest.mark.parametrize("kind", MODELS)
def test_harmless_fields_are_harmless(kind):
    config = config_of(kind)
    config |= {"mask_ratio": 0.0} if kind == "vit_mae" else {}
    changed = {name: other(value) for name, value in config.items() if name in HARMLESS - DERIVED - ABOUT}
    changed |= {"pooler_act": "relu"} if "pooler_act" in config else {}
    changed = {name: value for name, value in changed.items() if name not in ("mask_ratio", "return_dict")}  # set there
    assert {"hidden_dropout_prob", "initializer_range"} <= {n for n in changed if changed[n] != config[n]}
    expected, state = output_of(kind, config, None)
    found, _ = output_of(kind, {**config, **changed}, state)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "relu"}, r"folder/config\.json says hidden_act 'relu', .* only 'gelu' or 'gelu_python'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh'"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"quantization_config": {"bits": 4}}, "has the field quantization_config"),
        ({"rope_theta": 100.0}, "has the field rope_theta .'100.0'.,? whose effect on a 'vit' is not known"),
        ({"model_type": "yolos"}, "says model_type 'yolos': it is not converted; vit, deit, beit"),
        ({"model_type": None}, "names no model_type"),
        ({"model_type": ["vit"]}, "says model_type"),
    ],
)
def test_what_the_encoder_cannot_be_is_refused_by_name(changes, match):
    with pytest.raises(ValueError, match=match):
        check_fields(PATH, {**config_of("vit"), **changes})


def test_without_effect_or_without_value():
    config = {**config_of("vit"), "hidden_act": "gelu_python", "rope_theta": None, "torch_dtype": "float16"}
    check_fields(PATH, config)


def test_what_the_config_tells_the_encoder():
    config = config_of("dinov2", image_size=[16, 32], layer_norm_eps=1e-5)
    expected = {"num_heads": 2, "layer_norm_eps": 1e-5, "img_size": [16, 32], "position_resize": "plain"}
    assert encoder_arguments(PATH, config) == expected
    assert encoder_arguments(PATH, config_of("dinov2_with_registers"))["position_resize"] == "antialias"
    # What is left out has the library's default.
    assert encoder_arguments(PATH, {"model_type": "vit"})["layer_norm_eps"] == 1e-12
    assert encoder_arguments(PATH, {"model_type": "vit_msn"})["layer_norm_eps"] == 1e-6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch_size": [8, 16]}, "patches have to be square"),
        ({"hidden_size": "many"}, "is not one that transformers takes"),
        ({"image_size": [1, 2, 3]}, r"config\.json"),
        ({"patch_size": []}, r"config\.json"),
    ],
)
def test_values_of_a_wrong_kind(changes, match):
    with pytest.raises(ValueError, match=match):
        encoder_arguments(PATH, {**config_of("vit"), **changes})


def test_the_width_of_dinov2s_mlp_is_told_by_its_ratio():
    encoder = {"embed_dim": 16, "depth": 1, "in_chans": 3, "patch_size": 8, "mlp_ratio": 4.0, "img_size": [16, 16]}
    encoder["num_registers"] = 0
    check_sizes(PATH, config_of("dinov2", intermediate_size=7), encoder)
    with pytest.raises(ValueError, match="says mlp_ratio 4, but the weights have 2"):
        check_sizes(PATH, config_of("dinov2"), {**encoder, "mlp_ratio": 2.0})


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "intermediate_size", "num_channels", "patch_size", "image_size"]
)
def test_a_config_of_another_model_is_told_by_its_sizes(field):
    encoder = {"embed_dim": 16, "depth": 1, "in_chans": 3, "patch_size": 8, "mlp_ratio": 4.0, "img_size": [16, 16]}
    encoder["num_registers"] = 0
    check_sizes(PATH, config_of("vit"), encoder)
    config = config_of("vit")
    with pytest.raises(ValueError, match=rf"says {field} .*, but the weights have .*: the two are not of one model"):
        check_sizes(PATH, {**config, field: config[field] * 2}, encoder)
