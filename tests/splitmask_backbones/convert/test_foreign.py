"""splitmask_backbones.convert.foreign: a file that is not converted is refused under its own family's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from splitmask_backbones import VisionTransformer
from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.convert.foreign import foreign_family, refuse_foreign

FIRST = "patch_embed.proj.weight"
# Keys as the authors' own files have them.
PUBLISHED = {
    "DINOv3": [FIRST, "storage_tokens", "rope_embed.periods", "blocks.0.attn.qkv.bias_mask", "blocks.0.ls1.gamma"],
    "SAM": [f"image_encoder.{FIRST}", "image_encoder.blocks.0.attn.rel_pos_h", "image_encoder.neck.0.weight",
            "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"],
    "SAM 2": ["image_encoder.trunk.patch_embed.proj.weight", "image_encoder.neck.convs.0.conv.weight",
              "image_encoder.trunk.pos_embed_window", "memory_encoder.fuser.layers.0.gamma"],
    "CLIP": ["visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight", "token_embedding.weight",
             "visual.transformer.resblocks.0.attn.in_proj_weight", "logit_scale"],
    "EVA-02": [FIRST, "pos_embed", "blocks.0.attn.inner_attn_ln.weight", "blocks.0.mlp.w3.weight", "rope.freqs_cos"],
    "DINOv2 of giant size": [FIRST, "pos_embed", "blocks.0.0.mlp.w12.weight", "blocks.0.0.mlp.w3.weight"],
    "mmseg or mmpretrain": ["backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"],
    "torchvision": ["conv_proj.weight", "class_token", "encoder.layers.encoder_layer_0.ln_1.weight"],
}  # fmt: skip


def ones(names: list[str]) -> dict[str, torch.Tensor]:
    return dict.fromkeys(names, torch.ones(1))


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_names_tell_the_family(family):
    found = foreign_family(ones(PUBLISHED[family]))
    assert found is not None and found[0] == family
    found = foreign_family(ones([f"module.{name}" for name in PUBLISHED[family] if not name.startswith("prompt")]))
    assert found is not None and found[0] == family


def test_giant_dinov2_is_told_before_eva_by_its_chunks():
    # Both have a gated MLP with a third matrix, w3: DINOv2's first two are one, w12.
    assert (
        foreign_family(ones([FIRST, "blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"]))[0] == "DINOv2 of giant size"
    )
    assert foreign_family(ones([FIRST, "blocks.0.mlp.w1.weight", "blocks.0.mlp.w3.weight"]))[0] == "EVA-02"


TIMM = {
    "vit_small_patch16_dinov3": "DINOv3",
    "samvit_base_patch16": "SAM",
    "vit_base_patch16_clip_quickgelu_224": "CLIP",
    "vit_base_patch16_siglip_224": "SigLIP",
    "eva02_tiny_patch14_224": "EVA-02",
    "eva02_base_patch16_clip_224": "EVA-02",
    "swin_tiny_patch4_window7_224": "Swin",
    "vit_giant_patch14_dinov2": "DINOv2 of giant size",
    "vit_small_patch16_224": None,
    "deit_small_distilled_patch16_224": None,
    "deit3_small_patch16_224": None,
    "vit_small_patch14_reg4_dinov2": None,
    "beit_base_patch16_224": None,
    "vit_small_patch16_224.dino": None,
}


@pytest.mark.parametrize("name", TIMM)
def test_timms_models_and_those_that_are_converted(name):
    timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    found = foreign_family(model.state_dict())
    assert (found and found[0]) == TIMM[name]


SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
SIZES |= {"patch_size": 8}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DINOv3ViTModel": ("DINOv3ViTConfig", "DINOv3", {"intermediate_size": 32, "num_register_tokens": 1}),
    "CLIPVisionModel": ("CLIPVisionConfig", "CLIP", {"intermediate_size": 32}),
    "SiglipVisionModel": ("SiglipVisionConfig", "SigLIP", {"intermediate_size": 32}),
    "SamVisionModel": ("SamVisionConfig", "SAM", {"window_size": 2, "global_attn_indexes": [], "output_channels": 4}),
    "Dinov2Model": ("Dinov2Config", "DINOv2 of giant size", {"use_swiglu_ffn": True}),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_folders_of_hugging_face(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra 'convert' is not installed")
    config, family, kwargs = TRANSFORMERS[name]
    getattr(transformers, name)(getattr(transformers, config)(**SIZES, **kwargs)).save_pretrained(tmp_path / "in")
    with pytest.raises(ValueError, match=rf"model\.safetensors is of {family} .it has .*: it is not converted; plain"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_encoder_itself_and_its_relatives_pass():
    for kwargs in ({}, {"num_registers": 2, "layer_scale": 0.1}, {"use_rel_pos": True}, {"positions": "none"}):
        refuse_foreign(
            Path("a"), VisionTransformer(img_size=32, embed_dim=16, depth=1, num_heads=1, **kwargs).state_dict()
        )
