"""Conversions: each family from its own library's random model, to every target and back."""

from __future__ import annotations

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from splitmask_backbones import VisionTransformer, create_encoder, load_encoder, save_encoder
from splitmask_backbones.checkpoints import read_encoder_file
from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.files import sha256_of
from splitmask_backbones.position import resize_pos_embed

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as TimmViT  # noqa: E402

SIZES: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 1}


def shaken(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def plain(**kwargs: Any) -> Any:
    return shaken(TimmViT(**SIZES, **{"num_classes": 0, "global_pool": "token", "dynamic_img_size": True, **kwargs}))


def beit(**kwargs: Any) -> Any:
    arguments = {"use_abs_pos_emb": False, "init_values": 0.1, "num_classes": 0, "global_pool": "", **kwargs}
    return shaken(Beit(**SIZES, **arguments))


def families() -> dict[str, tuple[str, Any, Any]]:
    """Returns name -> (family, contents of the file, the model whose `forward_features` it is)."""
    vit, labelled, dist = plain(), plain(num_classes=5), shaken(VisionTransformerDistilled(**SIZES, num_classes=5))
    shared, own = beit(use_shared_rel_pos_bias=True), beit(use_rel_pos_bias=True)
    head = {"head.mlp.0.weight": torch.zeros(3, 3), "head.last_layer.weight_g": torch.zeros(3)}
    moco = {
        **under("module.base_encoder.", vit.state_dict()),
        **under("module.momentum_encoder.", plain().state_dict()),
        "module.predictor.0.weight": torch.zeros(2),
    }
    decoder = {"decoder_embed.weight": torch.zeros(2), "mask_token": torch.zeros(1, 1, 2)}
    return {
        "timm": ("timm", labelled.state_dict(), labelled),
        "deit": ("timm", {"model": labelled.state_dict()}, labelled),
        "deit_distilled": ("deit", {"model": dist.state_dict()}, dist),
        "dino": ("dino", {"student": {}, "teacher": {**under("backbone.", vit.state_dict()), **head}}, vit),
        "mae": ("mae", {"model": {**vit.state_dict(), **decoder}}, vit),
        "mocov3": ("mocov3", {"state_dict": moco}, vit),
        "beit_per_block": ("beit", {"model": {**own.state_dict(), "lm_head.weight": torch.zeros(2)}}, own),
        "beit_shared": ("beit", {"model": shared.state_dict()}, shared),
    }


@pytest.mark.parametrize("name", families())
def test_every_family_gives_its_own_models_tokens(name, tmp_path):
    family, content, model = families()[name]
    torch.save(content, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "deep/er/out.safetensors")
    assert done.family == family and done.report.complete
    assert all(difference <= 1e-5 for difference in done.differences.values()), done.differences
    encoder = load_encoder(tmp_path / "deep/er/out.safetensors").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)


def test_what_an_encoder_was_converted_from_stays_with_it(tmp_path):
    torch.save(plain().state_dict(), tmp_path / "deit.pth")
    digest = sha256_of(tmp_path / "deit.pth")
    done = convert(tmp_path / "deit.pth", tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "again.safetensors")  # as much ours as before
    convert(tmp_path / "again.safetensors", tmp_path / "again.safetensors", overwrite=True)
    entry = {"file": "deit.pth", "sha256": digest, "family": "timm"}
    for name in ("ours", "again"):
        assert read_encoder_file(tmp_path / f"{name}.safetensors").lineage == [entry]
    assert done.sha256 == digest
    convert(tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", to="timm")
    convert(tmp_path / "timm.safetensors", tmp_path / "back.safetensors")  # timm's files have no place for it
    (last,) = read_encoder_file(tmp_path / "back.safetensors").lineage
    assert last == {"file": "timm.safetensors", "sha256": sha256_of(tmp_path / "timm.safetensors"), "family": "timm"}


@pytest.mark.parametrize("size", [(96, 96), (64, 128), (80, 48)])
def test_other_sizes_and_gradients(size, tmp_path):
    model = plain()
    torch.save(model.state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    encoder = load_encoder(tmp_path / "out.safetensors").eval()
    images = torch.randn(2, 3, *size)
    ours, theirs = encoder(images), model.forward_features(images)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for name, parameter in encoder.named_parameters():
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (80, 48)])
def test_dino_at_other_sizes_as_its_code_resizes_positions(size, tmp_path):
    """Restated: the patches' positions are interpolated, bicubic and not antialiased; the class token's stays."""
    model = plain()
    torch.save({"teacher": under("backbone.", model.state_dict())}, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    encoder = load_encoder(tmp_path / "out.safetensors").eval()
    images = torch.randn(2, 3, *size)
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    table = model.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    table = nn.functional.interpolate(table, (size[0] // 16, size[1] // 16), mode="bicubic", align_corners=False)
    x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1)
    x = x + torch.cat([model.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)
    expected = model.norm(model.blocks(x))
    found = encoder(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for name in ("pos_embed", "blocks.0.attn.qkv.weight"):
        torch.testing.assert_close(
            encoder.get_parameter(name).grad, model.get_parameter(name).grad, atol=1e-4, rtol=1e-3
        )


def resized_by(to, table):
    """Returns positions `(1, 1 + 4 * 4, C)` for a grid of 2 x 7, by the code of a target's own library."""
    if to == "timm":
        return resample_abs_pos_embed(table, [2, 7], num_prefix_tokens=1)
    if to == "mmseg":
        pytest.importorskip("splitmask_backbones.mmseg")
        from mmseg.models.backbones import VisionTransformer as MMSegViT

        return MMSegViT.resize_pos_embed(table, (2, 7), (4, 4), "bicubic")
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": table.shape[2], "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 64}
    model = transformers.ViTModel(transformers.ViTConfig(**size))
    model.embeddings.position_embeddings.data = table
    return model.embeddings.interpolate_pos_encoding(torch.zeros(1, 15, table.shape[2]), 32, 112)


@pytest.mark.parametrize("to", ["timm", "mmseg", "hf"])
def test_positions_that_a_target_resizes_otherwise_are_told(to, tmp_path):
    torch.manual_seed(0)
    for resize in ("antialias", "plain"):
        sizes = {"img_size": 64, "embed_dim": 64, "depth": 1, "num_heads": 1, "use_class_token": True}
        encoder = VisionTransformer(**sizes, position_resize=resize)
        encoder.pos_embed.data.normal_()
        ours = resize_pos_embed(encoder.pos_embed, (4, 4), (2, 7), 1, resize)
        differs = (resized_by(to, encoder.pos_embed.data) - ours).abs().max().item() > 1e-4
        save_encoder(encoder, tmp_path / "in.safetensors")
        done = convert(tmp_path / "in.safetensors", tmp_path / f"{resize}{'' if to == 'hf' else '.pth'}", to=to)
        assert bool(done.remarks) == differs
        assert all(f"positions: {to} resizes them" in remark for remark in done.remarks)


@pytest.mark.parametrize(("shape", "family", "resize"), [((1, 64), "dino", "plain"), ((1, 1, 64), "timm", "antialias")])
def test_a_bare_dinov2_file_is_told_by_its_mask_token(tmp_path, shape, family, resize):
    encoder = VisionTransformer(img_size=64, embed_dim=64, depth=2, num_heads=1, use_class_token=True, layer_scale=0.1)
    torch.save(encoder.state_dict() | {"mask_token": torch.zeros(shape)}, tmp_path / "dinov2.pth")
    done = convert(tmp_path / "dinov2.pth", tmp_path / "out.safetensors")
    assert (done.family, load_encoder(tmp_path / "out.safetensors").position_resize) == (family, resize)


def test_dinov2_registers_have_no_positions(tmp_path):
    """Restated: positions are added to the class token and the patches, then registers are put between."""
    model = plain(init_values=0.1)
    registers = torch.randn(1, 4, 64)
    content = {**model.state_dict(), "register_tokens": registers, "mask_token": torch.zeros(1, 64)}
    torch.save({"teacher": under("backbone.", content)}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert done.family == "dino" and done.encoder.config["position_resize"] == "antialias"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x = model.patch_embed(images).flatten(1, 2) if model.dynamic_img_size else model.patch_embed(images)
        x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1) + model.pos_embed
        x = torch.cat([x[:, :1], registers.expand(2, -1, -1), x[:, 1:]], dim=1)
        expected = model.norm(model.blocks(x))
        torch.testing.assert_close(done.encoder(images), expected, atol=1e-5, rtol=1e-5)
    chunked = {name.replace("blocks.", "blocks.0."): value for name, value in content.items()}
    torch.save(chunked, tmp_path / "chunks.pth")
    assert convert(tmp_path / "chunks.pth", tmp_path / "c.safetensors").differences["source"] <= 1e-5


@pytest.mark.parametrize("setting", ["autocast", "float64", "inference", "meta"])
def test_settings_of_the_caller_do_not_weaken_the_proof(setting, tmp_path):
    """Under autocast both models used to be compared in bfloat16, on the meta device not at all."""
    torch.save(plain().state_dict(), tmp_path / "in.pth")
    before = torch.random.get_rng_state()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if setting == "float64" else default)
    try:
        with contextlib.ExitStack() as stack:
            if setting == "autocast":
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if setting == "inference":
                stack.enter_context(torch.inference_mode())
            if setting == "meta":
                stack.enter_context(torch.device("meta"))
            done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
            assert torch.is_autocast_enabled("cpu") == (setting == "autocast")
        assert torch.get_default_dtype() == (torch.float64 if setting == "float64" else default)
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(torch.random.get_rng_state(), before)
    parameter = done.encoder.norm.weight
    assert parameter.dtype == torch.float32 and parameter.device.type == "cpu" and not parameter.is_inference()
    encoder = load_encoder(tmp_path / "out.safetensors")
    assert all(torch.equal(value, done.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_deit_iii_calls_its_scales_as_beit_does(tmp_path):
    """Its authors' files have gamma_1 as BEiT's, but a bias for the keys, and positions for the patches alone."""
    model = plain(init_values=0.1, no_embed_class=True)
    state = {re.sub(r"ls([12])\.gamma$", r"gamma_\1", name): value for name, value in model.state_dict().items()}
    assert "blocks.0.gamma_2" in state
    torch.save({"model": state}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(done.encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)
    assert done.family == "timm" and done.differences["source"] <= 1e-5


def test_guesses_are_said(tmp_path, caplog):
    small = {**SIZES, "embed_dim": 384, "depth": 1, "num_heads": 6, "class_token": True}
    state = shaken(TimmViT(**small, num_classes=0)).state_dict()
    torch.save({"state_dict": under("module.base_encoder.", state)}, tmp_path / "moco.pth")
    done = convert(tmp_path / "moco.pth", tmp_path / "a.safetensors")
    assert done.encoder.config["num_heads"] == 6 and "MoCo v3's own ViT-S has 12 heads" in caplog.text
    caplog.clear()
    done = convert(tmp_path / "moco.pth", tmp_path / "b.safetensors", overrides={"num_heads": 12})
    assert done.encoder.config["num_heads"] == 12 and caplog.text == ""
    torch.save({"student": under("backbone.", plain().state_dict())}, tmp_path / "dino.pth")
    convert(tmp_path / "dino.pth", tmp_path / "c.safetensors")
    assert "the student is taken" in caplog.text


def test_a_class_token_without_position_is_said(tmp_path, caplog):
    model = plain(no_embed_class=True)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert "4 x 4 patches alone" in done.report.expected_missing["positions of tokens"]
    assert "if they are 3 x 5 patches and the class token, add --set img_size=48,80" in caplog.text
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(done.encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)


def test_a_grid_that_only_looks_square_is_told_by_its_size(tmp_path):
    """Of 3 x 5 patches and the class token, as many as 4 x 4."""
    model = shaken(TimmViT(**{**SIZES, "img_size": (48, 80)}, class_token=True, num_classes=0))
    torch.save(model.state_dict(), tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", overrides={"img_size": (48, 80)})
    images = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(done.encoder(images), model.forward_features(images), atol=1e-5, rtol=1e-5)


def test_to_hugging_face_without_a_class_token(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra 'convert' is not installed")
    encoder = shaken(VisionTransformer(**SIZES))
    save_encoder(encoder, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "hf", to="hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    assert type(model).__name__ == "IJepaModel"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images).last_hidden_state, encoder(images), atol=1e-5, rtol=1e-5)
    again = convert(tmp_path / "hf", tmp_path / "again.safetensors").encoder
    assert not again.config["use_class_token"]
    torch.testing.assert_close(again(images), encoder(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [None, "use_relative_position_bias", "use_shared_relative_position_bias"])
def test_hugging_face_folders(bias, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra 'convert' is not installed")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if bias is None:
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=64))
    else:
        config = transformers.BeitConfig(**sizes, image_size=64, use_mean_pooling=False, **{bias: True})
        model = transformers.BeitModel(config)
    shaken(model).save_pretrained(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out.safetensors")
    assert done.family == "hf" and done.encoder.config["layer_norm_eps"] == 1e-12
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).last_hidden_state
    torch.testing.assert_close(done.encoder(images), expected, atol=1e-5, rtol=1e-5)
    convert(tmp_path / "out.safetensors", tmp_path / "back", to="hf")
    again = type(model).from_pretrained(tmp_path / "back", add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def targets(tmp_path: Path, encoder: VisionTransformer, to: str) -> Any:
    save_encoder(encoder, tmp_path / "in.safetensors")
    suffix = {"timm": ".safetensors", "splitmask": ".safetensors"}.get(to, ".pth")
    done = convert(tmp_path / "in.safetensors", tmp_path / f"out{suffix}", to=to)
    assert done.differences["target"] <= done.tolerance
    return tmp_path / f"out{suffix}"


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("token", [True, False])
def test_to_mmseg_loads_into_its_backbone(token, norm, tmp_path):
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    from mmseg.models.backbones import VisionTransformer as MMSegViT

    encoder = shaken(VisionTransformer(**SIZES, use_class_token=token))
    state = torch.load(targets(tmp_path, encoder, "mmseg"), weights_only=True)["state_dict"]
    model = MMSegViT(
        img_size=64, embed_dims=64, num_layers=3, num_heads=1, out_indices=2, patch_bias=True, with_cls_token=token,
        norm_cfg={"type": "LN", "eps": 1e-6}, final_norm=norm,
    )  # fmt: skip
    own = {name.removeprefix("backbone."): value for name, value in state.items()}
    missing, unexpected = model.load_state_dict(own, strict=norm)
    assert not missing and unexpected == ([] if norm else ["ln1.weight", "ln1.bias"])  # ours go along in any case
    model.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder.forward_maps(images, norm_maps=norm)[-1]
        torch.testing.assert_close(model(images)[-1], expected, atol=1e-5, rtol=1e-5)


def test_beit_to_mmseg(tmp_path):
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    model = beit(use_rel_pos_bias=True)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    done = convert(tmp_path / "ours.safetensors", tmp_path / "out.pth", to="mmseg")
    assert done.differences["target"] <= done.tolerance  # against mmseg's own BEiT
    state = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    assert torch.equal(state["backbone.layers.1.gamma_2"], model.blocks[1].gamma_2)
    assert torch.equal(state["backbone.ln1.bias"], model.norm.bias)
    name = "backbone.layers.0.attn.relative_position_bias_table"
    assert torch.equal(state[name], model.blocks[0].attn.relative_position_bias_table)
    from mmseg.models.backbones import BEiT

    theirs = BEiT(
        img_size=64, embed_dims=64, num_layers=3, num_heads=1, out_indices=2, qv_bias=True, init_values=0.1,
        norm_cfg={"type": "LN", "eps": 1e-6}, final_norm=True,
    )  # fmt: skip
    own = {name.removeprefix("backbone."): value for name, value in state.items()}
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected and all(name.endswith("relative_position_index") for name in missing)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # the norm too, which the export's own comparison leaves out
        expected = load_encoder(tmp_path / "ours.safetensors").eval().forward_maps(images, norm_maps=True)[-1]
        theirs.eval()  # which returns nothing
        torch.testing.assert_close(theirs(images)[-1], expected, atol=1e-5, rtol=1e-5)


def vitdet(windows: bool = True, rel_pos: bool = True) -> Any:
    from detectron2.modeling import SimpleFeaturePyramid, ViT
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    where = {"window_size": 3, "window_block_indexes": (0, 2)} if windows else {}
    net = ViT(
        img_size=128, embed_dim=64, depth=3, num_heads=1, use_rel_pos=rel_pos, pretrain_img_size=64,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), **where,
    )  # fmt: skip
    scales = (4.0, 2.0, 1.0, 0.5)
    return shaken(SimpleFeaturePyramid(net, "last_feat", 16, scales, LastLevelMaxPool(), "LN", 0))


@pytest.mark.detectron2
def test_the_restated_vitdet_is_detectron2s():
    from splitmask_backbones.convert.vitdet import vitdet_map

    for windows in (True, False):
        for rel_pos in (True, False):
            net = vitdet(windows, rel_pos).net
            for size in ((128, 128), (96, 160)):
                images = torch.randn(1, 3, *size)
                with torch.no_grad():
                    found = vitdet_map(net.state_dict(), images, 1, 3 if windows else 0, (0, 2))
                    torch.testing.assert_close(found, net(images)["last_feat"], atol=1e-4, rtol=1e-4)


@pytest.mark.detectron2
def test_a_vitdet_detector_comes_with_its_pyramid_and_goes_back(tmp_path):
    from splitmask_backbones.detectron2 import SplitMaskViTBackbone

    model = vitdet()
    content = {**under("backbone.", model.state_dict()), "roi_heads.box_head.fc1.weight": torch.zeros(2)}
    torch.save({"model": content, "trainer": {"iteration": 5}}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", from_="vitdet")
    assert done.encoder.config["window_block_indexes"] == [0, 2] and done.encoder.config["window_size"] == 3
    backbone = SplitMaskViTBackbone(weights=tmp_path / "out.safetensors", out_channels=16).eval()
    for size in ((128, 128), (96, 160)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            for ours, theirs in zip(backbone(images).values(), model(images).values(), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    convert(tmp_path / "out.safetensors", tmp_path / "back.pth", to="detectron2")
    state = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    own = {name.removeprefix("backbone."): value for name, value in state.items()}
    for name, value in model.state_dict().items():
        if name != "net.pos_embed":  # the row that it ignores comes back as zeros
            assert torch.equal(own[name], value), name
    other = SplitMaskViTBackbone(weights=tmp_path / "out.safetensors", out_channels=8)
    assert "pyramid.*" in other.encoder.load_report.dropped


@pytest.mark.detectron2
def test_vitdet_without_visible_windows_asks_for_them(tmp_path):
    torch.save({"model": under("backbone.", vitdet(True, False).state_dict())}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="--set window_size=14"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", from_="vitdet")
    windows = {"window_size": 3, "window_block_indexes": (0, 2)}
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", from_="vitdet", overrides=windows)
    assert done.differences["source"] <= done.tolerance


def test_to_detectron2_loads_into_its_vit_keys(tmp_path):
    encoder = shaken(VisionTransformer(**SIZES, final_norm=False))
    state = torch.load(targets(tmp_path, encoder, "detectron2"), weights_only=True)["model"]
    assert state["backbone.net.pos_embed"].shape == (1, 17, 64)  # with the row of a class token, as its default wants
    assert torch.equal(state["backbone.net.blocks.1.attn.qkv.weight"], encoder.blocks[1].attn.qkv.weight)
    assert "backbone.net.norm.weight" not in state


def test_the_final_norm_survives_detectron2_which_has_none(tmp_path):
    """As further keys: fvcore's checkpointer loads with strict=False and logs them."""
    encoder = shaken(VisionTransformer(**SIZES))
    target = targets(tmp_path, encoder, "detectron2")
    assert torch.equal(torch.load(target, weights_only=True)["model"]["backbone.net.norm.bias"], encoder.norm.bias)
    windows = {"window_size": 0}
    back = convert(target, tmp_path / "back.safetensors", from_="vitdet", overrides=windows)
    assert back.report.complete and not any("norm" in key for key in back.report.dropped)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(back.encoder(images), encoder(images), atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    heads=st.integers(1, 2),
    grid=st.integers(2, 4),
    patch=st.sampled_from([8, 14, 16]),
    depth=st.integers(1, 3),
    positions=st.sampled_from(["learned", "sincos", "fourier", "none"]),
    token=st.booleans(),
    registers=st.integers(0, 2),
    scale=st.sampled_from([None, 0.5]),
    precision=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_to_timm_and_back(tmp_path_factory, heads, grid, patch, depth, positions, token, registers, scale, precision):
    folder = tmp_path_factory.mktemp("round")
    encoder = shaken(
        VisionTransformer(
            img_size=grid * patch, patch_size=patch, embed_dim=64 * heads, depth=depth, num_heads=heads,
            positions=positions, use_class_token=token, num_registers=registers, layer_scale=scale,
        )
    ).to(precision).float()  # fmt: skip
    save_encoder(encoder, folder / "a.safetensors")
    convert(folder / "a.safetensors", folder / "b.safetensors", to="timm")
    back = convert(folder / "b.safetensors", folder / "c.safetensors", overrides={"img_size": grid * patch})
    images = torch.randn(1, 3, grid * patch, grid * patch)
    with torch.no_grad():
        found, expected = load_encoder(folder / "c.safetensors").eval()(images), encoder(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert back.encoder.config["positions"] == ("none" if positions == "none" else "learned")


def family_model(family: str, sizes: dict[str, Any], token: bool, positions: bool) -> tuple[Any, Any]:
    """Returns the contents of a file as a family's authors keep it, and the model that it is of."""
    if family == "beit":
        model = shaken(
            Beit(**sizes, use_abs_pos_emb=positions, use_rel_pos_bias=not positions, init_values=0.1, num_classes=0)
        )
        return {"model": model.state_dict()}, model
    if family == "deit":
        model = shaken(VisionTransformerDistilled(**sizes, num_classes=3))
        return {"model": model.state_dict()}, model
    pooling = {"global_pool": "token" if token else "avg", "class_token": token, "fc_norm": False}
    model = shaken(TimmViT(**sizes, **pooling, num_classes=3, pos_embed="learn" if positions else "none"))
    state = model.state_dict()
    return {
        "timm": state,
        "dino": {"teacher": under("module.backbone.", state)},
        "mae": {"model": {**state, "mask_token": torch.zeros(1), "decoder_norm.bias": torch.zeros(1)}},
        "mocov3": {"state_dict": under("module.base_encoder.", state)},
    }[family], model


@settings(max_examples=24, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(["timm", "deit", "beit", "dino", "mae", "mocov3"]),
    heads=st.integers(1, 2),
    grid=st.integers(2, 4),
    patch=st.sampled_from([8, 14, 16]),
    depth=st.integers(1, 2),
    token=st.booleans(),
    positions=st.booleans(),
    named=st.booleans(),
)
def test_any_family_of_any_size(tmp_path_factory, family, heads, grid, patch, depth, token, positions, named):
    sizes = {"img_size": grid * patch, "patch_size": patch, "embed_dim": 64 * heads, "depth": depth, "num_heads": heads}
    content, model = family_model(family, sizes, token, positions)
    folder = tmp_path_factory.mktemp("family")
    torch.save(content, folder / "in.pth")
    overrides = {} if positions or family in ("beit", "deit") else {"img_size": grid * patch}
    done = convert(folder / "in.pth", folder / "out.safetensors", family if named else "auto", overrides=overrides)
    assert done.family == family
    encoder = load_encoder(folder / "out.safetensors").eval()
    assert encoder.config["use_class_token"] == (token or family in ("beit", "deit"))
    images = torch.randn(2, 3, grid * patch, grid * patch)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model.forward_features(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype, tmp_path):
    state = {name: value.to(dtype) for name, value in plain().state_dict().items()}
    torch.save(state, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert next(done.encoder.parameters()).dtype == torch.float32
    assert torch.equal(done.encoder.norm.weight, state["norm.weight"].float())


def test_heads_that_a_file_does_not_show_are_told(tmp_path, caplog):
    """Both models of the comparison are built with the heads that are assumed: it cannot tell wrong ones."""
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for width, heads, told in (
        (384, 6, ""),
        (320, 5, "N if it has others"),
        (1280, 20, "N if it has 16, as published"),
    ):
        caplog.clear()
        model = shaken(TimmViT(**{**SIZES, "embed_dim": width, "depth": 1, "num_heads": heads}, mlp_ratio=0.2)).eval()
        torch.save(model.state_dict(), tmp_path / f"{width}.pth")
        done = convert(tmp_path / f"{width}.pth", tmp_path / f"{width}.safetensors")
        assert ("does not show its heads" in caplog.text) == bool(told) and told in caplog.text
        assert done.encoder.config["num_heads"] == heads
        with torch.no_grad():
            assert torch.allclose(done.encoder(images), model.forward_features(images), atol=1e-4)
    caplog.clear()
    done = convert(tmp_path / "320.pth", tmp_path / "a.safetensors", overrides={"num_heads": 4})
    assert done.encoder.config["num_heads"] == 4 and "does not show" not in caplog.text


def test_heads_of_vitdet_are_those_of_its_relative_positions(tmp_path):
    sizes = {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 3, "use_rel_pos": True}
    torch.save(shaken(VisionTransformer(**sizes)).state_dict(), tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", from_="vitdet", overrides={"window_size": 0})
    assert done.encoder.config["num_heads"] == 3


def test_a_run_in_the_middle(tmp_path):
    import dataclasses

    from pretrain.recipes import get_recipe
    from pretrain.training.checkpoints import save_checkpoint
    from pretrain.training.run_folder import write_json

    values = dataclasses.asdict(get_recipe("tiny"))
    encoder = shaken(create_encoder(values["model"], img_size=values["img_size"]))
    method = nn.Module()
    method.encoder, method.head = encoder, nn.Linear(2, 2)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/config.json", {"command": "pretrain", "values": values, "encoder": encoder.config})
    for step in (5, 10):
        with torch.no_grad():
            encoder.norm.bias.fill_(step)
        save_checkpoint(tmp_path / "run/checkpoints", step, method, torch.optim.SGD(method.parameters(), lr=0.1))
    assert convert(tmp_path / "run", tmp_path / "new.safetensors").encoder.norm.bias[0] == 10
    assert convert(tmp_path / "run", tmp_path / "old.safetensors", step=5).encoder.norm.bias[0] == 5
    with pytest.raises(ValueError, match="there are 5, 10"):
        convert(tmp_path / "run", tmp_path / "x.safetensors", step=7)


def run_folder(path, command, encoder):
    from pretrain.training.run_folder import write_json

    path.mkdir()
    write_json(path / "config.json", {"command": command, "encoder": encoder.config, "values": {}})
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.encoder, model.head = encoder, nn.Linear(2, 2)
    return model


def test_runs_of_the_detector(tmp_path):
    from pretrain.training.checkpoints import save_checkpoint
    from pretrain.training.ema import averaged
    from tools.finetuning.model_files import save_model

    encoder = shaken(create_encoder("vit_tiny", depth=2, img_size=64, final_norm=False, use_rel_pos=True))
    model = run_folder(tmp_path / "run", "train_det", encoder)
    bias = encoder.blocks[0].norm1.bias.data
    average = averaged(model, 0.9)
    average.module.state_dict()["backbone.encoder.blocks.0.norm1.bias"] += 7 - bias
    save_checkpoint(tmp_path / "run/checkpoints", 3, model, torch.optim.SGD(model.parameters(), lr=0.1), average)
    metadata = {"command": "train_det", "encoder": encoder.config}
    for value, name in ((1, "best"), (2, "detector")):
        bias.fill_(value)
        save_model(tmp_path / f"run/{name}.safetensors", model, metadata)

    def value(**kwargs):
        done = convert(tmp_path / "run", tmp_path / "out.safetensors", overwrite=True, **kwargs)
        assert "head.weight" in done.report.dropped or "model.head.weight" in done.report.dropped
        loaded = load_encoder(tmp_path / "out.safetensors")
        assert loaded.config == encoder.config
        return loaded.blocks[0].norm1.bias[0].item()

    assert (value(), value(best=True), value(step=3)) == (2, 1, 7)  # of the checkpoint the average
    assert convert(tmp_path / "run/best.safetensors", tmp_path / "b.safetensors").family == "splitmask"


def test_runs_of_the_segmentor(tmp_path):
    from pretrain.training.checkpoints import save_checkpoint

    encoder = shaken(create_encoder("vit_tiny", depth=2, img_size=64))
    model = run_folder(tmp_path / "run", "train_seg", encoder)
    encoder.norm.bias.data.fill_(1)
    save_file(model.state_dict(), tmp_path / "run/best.safetensors")
    encoder.norm.bias.data.fill_(2)
    save_checkpoint(tmp_path / "run/checkpoints", 20, model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert convert(tmp_path / "run", tmp_path / "a.safetensors").encoder.norm.bias[0] == 2
    assert convert(tmp_path / "run", tmp_path / "b.safetensors", best=True).encoder.norm.bias[0] == 1
    assert convert(tmp_path / "run", tmp_path / "c.safetensors", step=20).encoder.norm.bias[0] == 2
    with pytest.raises(ValueError, match="is a file: --best chooses in a run folder"):
        convert(tmp_path / "run/best.safetensors", tmp_path / "d.safetensors", best=True)
    (tmp_path / "run/best.safetensors").unlink()
    with pytest.raises(ValueError, match="keeps no best weights"):
        convert(tmp_path / "run", tmp_path / "d.safetensors", best=True)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_partial_file_says_so_wherever_it_is_loaded(tmp_path, caplog):
    state = plain().state_dict()
    del state["blocks.1.mlp.fc2.bias"]
    torch.save(state, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", allow_partial=True)
    assert done.report.missing == ["blocks.1.mlp.fc2.bias"]
    report = load_encoder(tmp_path / "out.safetensors").load_report
    assert report.complete and "converted with --allow-partial, 1 parameters missing" in report.warning
    assert report.warning in caplog.text and report.as_json()["warning"] == report.warning
    again = convert(tmp_path / "out.safetensors", tmp_path / "again.safetensors")  # it does not wash off
    assert again.report.warning
    assert "1 parameters missing" in load_encoder(tmp_path / "again.safetensors").load_report.warning
