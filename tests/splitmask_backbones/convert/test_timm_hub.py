"""splitmask_backbones.convert.timm_hub: a folder of timm is compared with the model that its config.json names."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.convert.timm_hub import hub_arguments, hub_model

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4}


def folder_of(path: Path, architecture: str, model_args: dict[str, Any], changes: dict[str, Any] | None = None) -> Any:
    """Writes a folder as timm's `save_for_hf` does; returns the model."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **model_args)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    content = {"architecture": architecture, "num_classes": model.num_classes, "num_features": model.num_features}
    content |= {"model_args": model_args, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}, **(changes or {})}
    (path / "config.json").write_text(json.dumps(content))
    return model.eval()


@pytest.mark.parametrize(
    "architecture", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"]
)
def test_heads_and_epsilon_come_from_the_architecture(architecture, tmp_path, caplog):
    arguments = {**SMALL, "img_size": 28 if "14" in architecture else 32}
    model = folder_of(tmp_path / "in", architecture, arguments)
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.encoder.config["num_heads"] == 4  # 32 channels: not to be told from the tensors
    assert "trained on pixels with mean [0.5, 0.5, 0.5]" in caplog.text
    images = torch.randn(1, 3, *done.encoder.img_size)
    with torch.no_grad():
        torch.testing.assert_close(done.encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)


def test_epsilon_is_the_models():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, norm_layer=partial(nn.LayerNorm, eps=1e-3))
    assert hub_arguments(model) == {"num_heads": 4, "layer_norm_eps": 1e-3, "img_size": [32, 32]}


@pytest.mark.parametrize("content", ["[1]", '{"architecture": "vit_tiny_patch16_224", "lr": 0.1}', "{"])
def test_somebody_elses_config_beside_a_file_is_not_the_models(content, tmp_path, caplog):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=64, depth=2, num_heads=1)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    (tmp_path / "config.json").write_text(content)
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert ("not looked at" in caplog.text) == (content[1:2] != '"')


@pytest.mark.parametrize(
    ("architecture", "model_args", "match"),
    [
        ("vit_tiny_patch16_224", {**SMALL, "act_layer": "quick_gelu"}, "activation is QuickGELU"),
        ("vit_tiny_patch16_224", {**SMALL, "act_layer": "gelu_tanh"}, "activation is GELU"),
        ("vit_tiny_patch16_224", {**SMALL, "act_layer": "relu"}, "activation is ReLU"),
    ],
)
def test_another_activation_is_refused_by_name(architecture, model_args, match, tmp_path):
    """The tensors are those of any ViT: with GELU on both sides of the proof they used to pass."""
    folder_of(tmp_path / "in", architecture, model_args)
    with pytest.raises(ValueError, match=rf"config\.json says architecture 'vit_tiny_patch16_224', whose {match}"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "vit_of_nobody"}, "timm does not build the architecture 'vit_of_nobody'"),
        ({"architecture": "resnet18", "model_args": {}}, "'resnet18', which is no plain ViT"),
        ({"model_args": {"img_sise": 32}}, "timm does not build"),
        ({"model_args": {**SMALL, "depth": 3}}, r"does not fit its config\.json"),
        ({"rotary": True}, "has the field rotary"),
    ],
)
def test_a_config_that_is_not_of_the_file(changes, match, tmp_path):
    folder_of(tmp_path / "in", "vit_tiny_patch16_224", SMALL, changes)
    with pytest.raises(ValueError, match=match):
        convert(tmp_path / "in", tmp_path / "out.safetensors")


def test_arguments_are_read_without_memory(tmp_path):
    config = {"architecture": "vit_large_patch16_224"}
    with torch.device("meta"):
        model = hub_model(tmp_path / "a", config)
    assert hub_arguments(model) == {"num_heads": 16, "layer_norm_eps": 1e-6, "img_size": [224, 224]}
    assert model.pos_embed.is_meta
