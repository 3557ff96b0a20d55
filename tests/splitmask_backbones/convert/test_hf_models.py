"""splitmask_backbones.convert.hf_models and arguments: folders of Hugging Face in and out, against its own models."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from splitmask_backbones import VisionTransformer, load_encoder, save_encoder
from splitmask_backbones.convert.arguments import arguments_of
from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.convert.hf_config import MODELS
from splitmask_backbones.convert.hf_models import processor_for
from splitmask_backbones.convert.read import WeightsFile

transformers = pytest.importorskip("transformers", reason="the extra 'convert' is not installed")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
SIZES |= {"patch_size": 8, "intermediate_size": 64}


def model_of(kind: str, **kwargs: Any) -> Any:
    config_class, model_class = (getattr(transformers, name) for name in MODELS[kind])
    return shaken(model_class(config_class(**{**SIZES, **kwargs})))


def shaken(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def tokens_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    kind = model.config.model_type
    kwargs: dict[str, Any] = {"interpolate_pos_encoding": True} if kind not in ("beit", "data2vec-vision") else {}
    if kind.startswith("dinov2"):
        kwargs = {}
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
        count = images.shape[2] * images.shape[3] // 64
        kwargs["noise"] = torch.arange(float(count)).expand(len(images), count)
    with torch.no_grad():
        return model(images, **kwargs).last_hidden_state


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_gives_its_own_models_tokens_at_its_own_and_other_sizes(kind, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.family == "hf" and done.differences["source"] <= done.tolerance
    encoder = load_encoder(tmp_path / "out.safetensors").eval()
    for size in ((32, 32), (48, 40)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images), tokens_of(model, images), atol=2e-5, rtol=1e-5)


def test_dinov2_with_registers_keeps_their_number_and_scales(tmp_path):
    model = model_of("dinov2_with_registers", num_register_tokens=3)
    model.save_pretrained(tmp_path / "in")
    config = convert(tmp_path / "in", tmp_path / "out.safetensors").encoder.config
    assert (config["num_registers"], config["use_class_token"], config["position_resize"]) == (3, True, "antialias")
    encoder = load_encoder(tmp_path / "out.safetensors")
    assert torch.equal(encoder.reg_token, model.embeddings.register_tokens)
    scale = next(value for name, value in model.state_dict().items() if name.endswith("1.layer_scale2.lambda1"))
    assert torch.equal(encoder.blocks[1].ls2.gamma, scale)


@pytest.mark.parametrize(
    ("name", "kind", "kwargs"),
    [
        ("ViTForImageClassification", "vit", {}),
        ("ViTForMaskedImageModeling", "vit", {}),
        ("DeiTForImageClassificationWithTeacher", "deit", {}),
        ("BeitForImageClassification", "beit", {"use_relative_position_bias": True, "use_mask_token": True}),
        ("Dinov2ForImageClassification", "dinov2", {}),
        ("Dinov2Backbone", "dinov2", {}),
    ],
)
def test_models_with_heads(name, kind, kwargs, tmp_path):
    whole = shaken(getattr(transformers, name)(getattr(transformers, MODELS[kind][0])(**SIZES, **kwargs)))
    whole.save_pretrained(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.differences["source"] <= done.tolerance
    if kind != "dinov2" or "Backbone" not in name:
        images = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            expected = getattr(whole, whole.base_model_prefix)(images).last_hidden_state
            torch.testing.assert_close(done.encoder(images), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "quick_gelu"])
def test_another_activation_is_not_proved_by_a_model_without_it(activation, tmp_path):
    """Both used to be built with GELU: outputs off by up to 0.9 were called equal."""
    model_of("vit", hidden_act=activation).save_pretrained(tmp_path / "in")
    with pytest.raises(ValueError, match=f"hidden_act '{activation}'"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_half_precision_named_in_the_config_is_no_difference(tmp_path):
    model_of("vit").to(torch.bfloat16).save_pretrained(tmp_path / "in")
    assert json.loads((tmp_path / "in/config.json").read_text())["dtype"] == "bfloat16"
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.differences["source"] <= 1e-5


def test_how_a_config_packs_outputs_is_no_difference(tmp_path):
    model_of("dinov2", return_dict=False).save_pretrained(tmp_path / "in")
    assert convert(tmp_path / "in", tmp_path / "out.safetensors").differences["source"] <= 1e-5


def test_an_image_size_of_two_sides_is_read(tmp_path):
    model_of("vit", image_size=[16, 64]).save_pretrained(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.encoder.grid_size == (2, 8)
    with pytest.raises(ValueError, match=r"--set img_size contradicts config\.json"):
        convert(tmp_path / "in", tmp_path / "other.safetensors", overrides={"img_size": 32})


def test_weights_without_their_config_are_refused(tmp_path):
    model_of("vit").save_pretrained(tmp_path / "in")
    (tmp_path / "in/config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json beside it, .*: copy it from where the weights come from"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")


@pytest.mark.parametrize("text", ["{", "[1]", "\ufeff", '{"model_type": "vit", "hidden_size": {}}', "null"])
def test_a_config_that_is_damaged(text, tmp_path):
    model_of("vit").save_pretrained(tmp_path / "in")
    (tmp_path / "in/config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")


def test_a_config_of_another_size_builds_nothing(tmp_path):
    model_of("vit").save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in/config.json").read_text())
    (tmp_path / "in/config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**7}))
    with pytest.raises(ValueError, match="says num_hidden_layers 10000000, but the weights have 2"):
        convert(tmp_path / "in", tmp_path / "out.safetensors")


def test_older_folders_keep_pytorch_model_bin_and_shards_are_named(tmp_path):
    model = model_of("vit")
    model.save_pretrained(tmp_path / "in")
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "in/model.safetensors"), tmp_path / "in/pytorch_model.bin")
    (tmp_path / "in/model.safetensors").unlink()
    assert convert(tmp_path / "in", tmp_path / "out.safetensors").differences["source"] <= 1e-5
    (tmp_path / "in/pytorch_model.bin").unlink()
    (tmp_path / "in/model.safetensors.index.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"several files \(model\.safetensors\.index\.json\), which are not read: save"
    ):
        convert(tmp_path / "in", tmp_path / "other.safetensors")


def test_settings_of_transformers_are_left_as_they_were(tmp_path):
    from transformers.utils import logging

    model_of("vit").save_pretrained(tmp_path / "in")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


ENCODERS: dict[str, dict[str, Any]] = {
    "ViTModel": {"use_class_token": True},
    "IJepaModel": {},
    "BeitModel": {"use_class_token": True, "positions": "none", "relative_position_bias": "per_block"},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_written_folder_works_in_transformers_own_tools(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = shaken(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, **ENCODERS[name]))
    save_encoder(encoder, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "hf", to="hf")
    rows, columns, colours = np.mgrid[0:50, 0:40, 0:3]
    picture = Image.fromarray((40 + 3 * rows + columns + 10 * colours).astype(np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    found = processor(picture, return_tensors="pt")["pixel_values"]
    assert tuple(found.shape) == (1, 3, 32, 32)
    # By hand: Pillow's bicubic resize, then ImageNet's statistics.
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = torch.from_numpy((small - mean) / std).permute(2, 0, 1)[None]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # within a grey level, 1 / 255 / 0.225
    extract = transformers.pipeline("image-feature-extraction", model=str(tmp_path / "hf"), device="cpu")
    assert type(extract.model).__name__ == name
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(extract(picture)), encoder(found), atol=1e-4, rtol=1e-4)


def test_the_statistics_of_the_source_stay_with_the_weights(tmp_path, caplog):
    model_of("vit").save_pretrained(tmp_path / "in")
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5] * 3}
    (tmp_path / "in/preprocessor_config.json").write_text(json.dumps(processor))
    convert(tmp_path / "in", tmp_path / "hf", to="hf")
    assert "pixels with mean [0.5, 0.5, 0.5] and deviation [0.5, 0.5, 0.5]" in caplog.text
    written = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
    assert (written["image_mean"], written["image_std"]) == ([0.5] * 3, [0.5] * 3)
    convert(tmp_path / "hf", tmp_path / "e.safetensors")  # an encoder file keeps them
    convert(tmp_path / "e.safetensors", tmp_path / "again", to="hf")
    assert json.loads((tmp_path / "again/preprocessor_config.json").read_text())["image_mean"] == [0.5] * 3
    caplog.clear()
    convert(tmp_path / "hf", tmp_path / "again.safetensors")
    assert "pixels with mean" in caplog.text
    processor = {**processor, "do_normalize": False}
    (tmp_path / "in/preprocessor_config.json").write_text(json.dumps(processor))
    convert(tmp_path / "in", tmp_path / "raw", to="hf")
    assert json.loads((tmp_path / "raw/preprocessor_config.json").read_text())["image_mean"] == [0.0] * 3


def test_other_channels_have_no_processor():
    arguments = {"in_chans": 4, "img_size": [32, 32]}
    assert processor_for(arguments, None) is None
    assert processor_for({**arguments, "in_chans": 3}, None)["size"] == {"height": 32, "width": 32}


def test_a_file_without_positions_is_said(caplog, tmp_path):
    state = VisionTransformer(img_size=32, embed_dim=64, depth=1, num_heads=1, positions="none").state_dict()
    file = WeightsFile(tmp_path / "a.pth", state)
    assert arguments_of(file, "timm", state, None, {"img_size": 32})["positions"] == "none"
    assert "shows no positions" in caplog.text
    caplog.clear()
    arguments_of(file, "timm", state, None, {"img_size": 32, "positions": "none"})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("norm.bias", torch.full((64,), float("nan")), r"norm\.bias is no tensor of finite numbers"),
        ("patch_embed.proj.weight", torch.zeros(64, 3, 2, 16, 16), "has the shape .64, 3, 2, 16, 16."),
        ("pos_embed", torch.zeros(64), r"pos_embed has the shape .64,."),
        (
            "pos_embed",
            torch.zeros(2, 4, 64),
            r"pos_embed has the shape .2, 4, 64., a plain ViT's is .1, tokens, width.",
        ),
        ("norm.weight", torch.zeros(64, dtype=torch.int64), r"norm\.weight is no tensor of finite numbers"),
    ],
)
def test_tensors_that_tell_nothing(name, value, match, tmp_path):
    state = VisionTransformer(img_size=32, embed_dim=64, depth=1, num_heads=1).state_dict()
    file = WeightsFile(tmp_path / "a.pth", {**state, name: value})
    with pytest.raises(ValueError, match=match):
        arguments_of(file, "timm", file.tensors, None, {})
