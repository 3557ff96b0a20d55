"""Configs that people have: mmseg's own model files, with the backbone replaced by one import and one line."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

WIDTH = 16
BACKBONE = {"_delete_": True, "type": "SplitMaskViT", "encoder": "vit_tiny", "embed_dim": 24, "num_heads": 3}
BACKBONE |= {"depth": 4, "out_channels": WIDTH}
STOCK = {
    "upernet_r50": {"in_channels": [WIDTH] * 4, "channels": 8},
    "upernet_beit": {"in_channels": [WIDTH] * 4, "channels": 8},
    "fpn_r50": None,  # its neck takes the four maps
    "fcn_r50-d8": {"in_channels": WIDTH, "channels": 8},
    "deeplabv3plus_r50-d8": {"in_channels": WIDTH, "c1_in_channels": WIDTH, "channels": 8, "c1_channels": 8},
    "segmenter_vit-b16_mask": {
        "in_channels": WIDTH, "in_index": 2, "channels": 12, "embed_dims": 12, "num_heads": 3,
    },
}  # fmt: skip
UNREAD = {"fcn_r50-d8": (0, 1), "deeplabv3plus_r50-d8": (1,), "segmenter_vit-b16_mask": (0, 1, 3)}


def sync_to_plain(value):
    """Turns SyncBN, which has no CPU kernel in training, into BN."""
    if isinstance(value, dict):
        return {
            k: "BN" if k == "type" and v == "SyncBN" else sync_to_plain(v)
            for k, v in value.items()
            if k != "pretrained"
        }
    return [sync_to_plain(item) for item in value] if isinstance(value, list) else value


def train_and_predict(model, unread=()):
    """Asserts that a step moves every parameter but those of unread levels; predicts at the original size."""
    torch.manual_seed(0)
    optimizer = {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.05}
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            type="OptimWrapper",
            optimizer=optimizer,
            constructor="SplitMaskLayerDecay",
            paramwise_cfg={"decay_rate": 0.9},
        ),
    )
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    samples = [
        SegDataSample(
            metainfo={"img_shape": (64, 64), "ori_shape": (40, 50)},
            gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64))),
        )
        for _ in images
    ]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model.train().train_step({"inputs": images, "data_samples": samples}, wrapper)
    assert torch.isfinite(losses["loss"])
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith(tuple(f"backbone.pyramid.levels.{i}." for i in unread))}
    found = model.eval().test_step({"inputs": images[:1], "data_samples": samples[:1]})
    assert found[0].pred_sem_seg.data.shape == (1, 40, 50)


@pytest.mark.parametrize("name", STOCK)
def test_stock_models_of_mmseg(name, tmp_path):
    head = {"num_classes": 3, **(STOCK[name] or {"channels": 8})}
    auxiliary = {"in_channels": WIDTH, "channels": 8, "num_classes": 3}
    changes = {"backbone": BACKBONE, "decode_head": head, "data_preprocessor": {"size": (64, 64)}}
    register_all_modules(init_default_scope=True)
    (tmp_path / "base.py").write_text(f"_base_ = ['mmseg::_base_/models/{name}.py']\n")
    stock = Config.fromfile(str(tmp_path / "base.py")).model
    if "auxiliary_head" in stock:
        changes["auxiliary_head"] = auxiliary
    if name == "fpn_r50":
        changes["neck"] = {"in_channels": [WIDTH] * 4, "out_channels": 8}
        changes["decode_head"]["in_channels"] = [8] * 4
    elif "neck" in stock:
        changes["neck"] = None  # the pyramid has the four strides already
    (tmp_path / "mine.py").write_text(
        f"_base_ = ['mmseg::_base_/models/{name}.py']\n"
        "custom_imports = dict(imports=['splitmask_backbones.mmseg'])\n"
        f"model = {changes!r}\n"
    )
    config = ConfigDict(sync_to_plain(Config.fromfile(str(tmp_path / "mine.py")).model.to_dict()))
    train_and_predict(MODELS.build(config), UNREAD.get(name, ()))


@pytest.mark.skipif(find_spec("mmdet") is None, reason="Mask2Former's parts come from mmdet, which is not installed")
def test_mask2former(tmp_path):
    pytest.importorskip("mmdet.models")
    register_all_modules(init_default_scope=True)
    (tmp_path / "mine.py").write_text("_base_ = ['mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py']\n")
    from tools.segmentation.config import derive

    config = Config.fromfile(str(tmp_path / "mine.py")).to_dict()
    config["model"]["backbone"] = {key: value for key, value in BACKBONE.items() if key != "_delete_"}
    config["model"]["decode_head"]["num_queries"] = 10
    whole = derive({**config, "img_size": 64}, num_classes=3)
    assert whole["model"]["decode_head"]["loss_cls"]["class_weight"] == [1.0, 1.0, 1.0, 0.1]
    assert whole["model"]["decode_head"]["in_channels"] == [WIDTH] * 4
    train_and_predict(MODELS.build(ConfigDict(whole["model"])))
