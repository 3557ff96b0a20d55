"""The mmseg adapter: maps, strict weights, groups, and a stub that never hides a real extension."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
# Before any other import of mmseg: it puts the stub in place.
adapter = pytest.importorskip("splitmask_backbones.mmseg")

from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.runner import load_checkpoint  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

from splitmask_backbones import create_encoder, save_encoder  # noqa: E402
from splitmask_backbones.errors import UserError  # noqa: E402
from splitmask_backbones.pyramid import build_pyramid  # noqa: E402

SMALL = {"encoder": "vit_tiny", "embed_dim": 24, "num_heads": 3, "depth": 6, "out_channels": 8}


def build(**kwargs):
    return MODELS.build({"type": "SplitMaskViT", **SMALL, **kwargs})


def segmentor_config():
    head = {
        "in_channels": [8] * 4,
        "in_index": [0, 1, 2, 3],
        "channels": 8,
        "num_classes": 3,
        "norm_cfg": {"type": "BN"},
    }
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor"},
        "backbone": {"type": "SplitMaskViT", **SMALL},
        "decode_head": {"type": "UPerHead", "align_corners": False, **head},
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def segmentor():
    register_all_modules(init_default_scope=True)
    return MODELS.build(segmentor_config())


@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
def test_four_maps_at_the_four_strides(pyramid, size):
    maps = build(pyramid=pyramid)(torch.randn(2, 3, *size))
    width = 24 if pyramid == "taps" else 8  # the encoder's, or out_channels
    assert [tuple(m.shape) for m in maps] == [(2, width, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]


def test_maps_equal_those_of_encoder_and_pyramid():
    backbone = build().eval()
    images = torch.randn(1, 3, 48, 64)
    pyramid = build_pyramid("simple", backbone.encoder, 8).eval()
    pyramid.load_state_dict(backbone.pyramid.state_dict())
    for ours, theirs in zip(backbone(images), pyramid(backbone.encoder.forward_maps(images), (48, 64)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
def test_every_parameter_gets_a_gradient(pyramid):
    backbone = build(pyramid=pyramid)
    sum(m.square().mean() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_pretrained_weights_are_loaded_and_survive_init_weights(tmp_path):
    encoder = create_encoder("vit_tiny", embed_dim=24, num_heads=3, depth=4)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "encoder.safetensors")}
    backbone = MODELS.build({"type": "SplitMaskViT", "out_channels": 8, "init_cfg": init})
    backbone.init_weights()
    state = backbone.encoder.state_dict()
    assert set(encoder.state_dict()) - set(state) == {"norm.weight", "norm.bias"}
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in state.items())


def test_mmengine_loads_the_backbone_whole_or_not_at_all(tmp_path):
    """Its loader takes what fits and warns of the rest: positions of another grid would stay random."""
    own, other = segmentor(), segmentor()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pth")
    load_checkpoint(other, str(tmp_path / "own.pth"))
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in other.state_dict().items())
    small = build(img_size=96)
    state = {f"backbone.{name}": value for name, value in small.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"1 of another shape; the first is backbone.encoder.pos_embed.*weights=FILE"):
        load_checkpoint(other, str(tmp_path / "small.pth"))
    resnet = {"backbone.conv1.weight": torch.ones(3), "decode_head.conv_seg.bias": torch.ones(3)}
    torch.save({"state_dict": resnet}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"does not hold this backbone \([1-9]\d+ missing, 1 unexpected"):
        load_checkpoint(other, str(tmp_path / "resnet.pth"))
    head = {"decode_head.conv_seg.bias": torch.ones(3)}
    torch.save({"state_dict": head}, tmp_path / "head.pth")
    load_checkpoint(other, str(tmp_path / "head.pth"))  # says nothing of a backbone
    assert torch.equal(other.decode_head.conv_seg.bias, torch.ones(3))


def test_mmsegs_inference_takes_a_config_and_a_checkpoint(tmp_path):
    """The encoder is built as the config's file says, its weights are the checkpoint's; as docs/mmseg.md promises."""
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    save_encoder(create_encoder("vit_tiny", embed_dim=24, num_heads=3, depth=6), tmp_path / "encoder.safetensors")
    trained = segmentor()
    backbone = {"type": "SplitMaskViT", "weights": str(tmp_path / "encoder.safetensors"), "out_channels": 8}
    model = {**segmentor_config(), "backbone": backbone}
    steps = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (96, 64)}, {"type": "PackSegInputs"}]
    config = {"model": model, "test_pipeline": steps, "default_scope": "mmseg"}
    config["custom_imports"] = {"imports": ["splitmask_backbones.mmseg"]}
    Config(config).dump(tmp_path / "config.py")
    classes = {"classes": ("a", "b", "c"), "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2]]}
    torch.save({"state_dict": trained.state_dict(), "meta": {"dataset_meta": classes}}, tmp_path / "iter_2.pth")
    used = init_model(str(tmp_path / "config.py"), str(tmp_path / "iter_2.pth"), device="cpu")
    assert all(torch.equal(value, used.state_dict()[name]) for name, value in trained.state_dict().items())
    found = inference_model(used, np.zeros((70, 90, 3), np.uint8))
    assert found.pred_sem_seg.data.shape == (1, 70, 90)


@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@torch.no_grad()
def test_same_maps_as_torchvisions_adapter(tmp_path, pyramid, size):
    pytest.importorskip("torchvision")
    from splitmask_backbones import torchvision

    path = tmp_path / "encoder.safetensors"
    save_encoder(create_encoder("vit_tiny", embed_dim=24, num_heads=3, depth=6), path)
    ours = adapter.SplitMaskViT(weights=path, pyramid=pyramid, out_channels=8).eval()
    theirs = torchvision.backbone(weights=path, pyramid=pyramid, out_channels=8).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *size)
    for a, b in zip(ours(images), list(theirs(images).values())[:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pyramid", ["simple", "tapped", "taps"])
@pytest.mark.parametrize(("norm", "kind"), [("BN", "BatchNorm2d"), ("SyncBN", "SyncBatchNorm"), ("none", None)])
def test_norm_of_the_pyramid(pyramid, norm, kind):
    kinds = {type(module).__name__ for module in build(pyramid=pyramid, norm=norm).pyramid.modules()}
    assert kinds & {"LayerNorm2d", "BatchNorm2d", "SyncBatchNorm"} == ({kind} if kind else set())


def test_unknown_norm_names_the_nearest():
    with pytest.raises(ValueError, match="unknown norm 'SyncBatchNorm': did you mean 'SyncBN'"):
        build(norm="SyncBatchNorm")


def test_mmengines_log_has_the_load_report(tmp_path):
    from mmengine.logging import MMLogger

    save_encoder(create_encoder("vit_tiny", embed_dim=24, num_heads=3, depth=4), tmp_path / "e.safetensors")
    MMLogger.get_instance("report", log_file=str(tmp_path / "log.txt"), log_level="INFO")
    backbone = adapter.SplitMaskViT(weights=tmp_path / "e.safetensors")
    assert backbone.encoder.load_report.summary() in (tmp_path / "log.txt").read_text()


def test_init_cfg_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="init_cfg.*Pretrained"):
        build(init_cfg={"type": "TruncNormal", "std": 0.02})


def test_unknown_override_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'drop_path_rate'"):
        build(droppath_rate=0.1)


def test_file_that_contradicts_the_name_is_an_error(tmp_path):
    save_encoder(create_encoder("vit_tiny", embed_dim=24, num_heads=3, depth=4), tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="embed_dim"):
        adapter.SplitMaskViT("vit_small", weights=tmp_path / "e.safetensors")


def test_every_parameter_of_a_segmentor_is_in_the_expected_group():
    model = segmentor()
    config = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
        "constructor": "SplitMaskLayerDecay",
        "paramwise_cfg": {"decay_rate": 0.5},
    }
    wrapper = build_optim_wrapper(model, config)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for name in group["names"]
    }
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("backbone.encoder.")
        layer = 7  # depth + 1: pyramid and heads
        if inner.startswith(("patch_embed", "pos_embed")):
            layer = 0
        elif inner.startswith("blocks."):
            layer = int(inner.split(".")[1]) + 1
        decays = parameter.ndim > 1 and inner != "pos_embed"
        assert found[name] == (pytest.approx(1e-3 * 0.5 ** (7 - layer)), 0.05 if decays else 0.0), name


def test_without_a_weight_decay_the_optimizers_own_holds():
    optimizer = adapter.SplitMaskLayerDecay({"optimizer": {"type": "AdamW", "lr": 1e-3}})(segmentor()).optimizer
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}  # torch's


def test_unknown_paramwise_key_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'decay_rate'"):
        adapter.SplitMaskLayerDecay({"optimizer": {"type": "AdamW", "lr": 1.0}}, {"layer_decay_rate": 0.5})


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_stub_explains_itself_when_it_is_called():
    result = run_python(
        "import splitmask_backbones._mmcv_stub as stub; stub.install(); stub.install()\n"
        "import sys; assert sum(type(f).__name__ == 'StubFinder' for f in sys.meta_path) == 1\n"
        "assert 'torch' not in sys.modules and 'mmcv' not in sys.modules\n"
        "m = __import__('importlib').import_module('mmcv._ext'); m.nms()"
    )
    assert "ImportError: mmcv._ext.nms is a compiled operation" in result.stderr


def test_stub_never_hides_a_real_extension(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    (tmp_path / "mmcv" / "_ext.py").write_text("REAL = 1\n")
    result = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import splitmask_backbones._mmcv_stub as stub; stub.install()\n"
        "import mmcv._ext; assert mmcv._ext.REAL == 1"
    )
    assert result.returncode == 0, result.stderr
