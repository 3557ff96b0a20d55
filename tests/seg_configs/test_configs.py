"""Every file of seg_configs/: builds at full size, takes a step when small, and the rows differ where they should."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from tests.helpers.paths import ROOT
from tools.segmentation.config import CONFIG_FOLDER, check_config, derive, load_config
from tools.segmentation.layout import make_layout

PATHS = sorted(CONFIG_FOLDER.glob("*.py"))
ROWS = [path for path in PATHS if path.stem.startswith("ade20k_160k")]
by_stem = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def build(config: dict[str, Any]) -> Any:
    register_all_modules(init_default_scope=True)
    return MODELS.build(Config(config).model)


@by_stem
def test_builds_at_full_size(path: Path) -> None:
    config = load_config(path)
    check_config(config)
    with torch.device("meta"):
        model = build(derive(config, num_classes=19))
    backbone = config["model"]["backbone"]
    width = backbone.get("embed_dim", {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}[backbone["encoder"]])
    assert model.backbone.encoder.embed_dim == width and model.decode_head.num_classes == 19


def shrunk(path: Path) -> dict[str, Any]:
    """Returns the config with a tiny encoder and heads and crops of 64 pixels; the rest is its own."""
    config = load_config(path)
    config["img_size"] = 64
    config["model"]["backbone"] |= {"encoder": "vit_tiny", "embed_dim": 24, "depth": 4, "out_channels": 8}
    for head in ("decode_head", "auxiliary_head"):
        if config["model"][head]:
            config["model"][head]["channels"] = 8
    return derive(config, num_classes=3)


@by_stem
def test_takes_a_step_when_small(path: Path) -> None:
    torch.manual_seed(0)
    config = shrunk(path)
    model = build(config)
    wrapper = build_optim_wrapper(model, Config({"optim": {"type": "OptimWrapper", **config["optim_wrapper"]}}).optim)
    samples = []
    for _ in range(2):
        labels = torch.randint(3, (1, 60, 64))
        samples.append(SegDataSample(metainfo={"img_shape": (60, 64)}, gt_sem_seg=PixelData(data=labels)))
    images = [torch.randint(256, (3, 60, 64), dtype=torch.uint8) for _ in samples]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model.train_step({"inputs": images, "data_samples": samples}, wrapper)
    assert torch.isfinite(losses["loss"]) and losses["loss"] > 0
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    metas = {"img_shape": (60, 64), "ori_shape": (30, 32)}
    model.eval()
    found = model.test_step({"inputs": images[:1], "data_samples": [SegDataSample(metainfo=metas)]})
    assert found[0].pred_sem_seg.data.shape == (1, 30, 32)


@by_stem
def test_head_comment_holds_the_command_of_this_very_file(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert path.stem == "demo" or f"tools/train_seg.py seg_configs/{path.name} --data " in text


def test_rows_are_beits_protocol_and_differ_in_the_encoder_alone() -> None:
    assert len(ROWS) == 7
    whole = load_config(CONFIG_FOLDER / "ade20k_160k_vit_base_splitmask_ade20k.py")
    derived = derive(whole, 150)
    assert (whole["steps"], whole["batch_size"], whole["img_size"]) == (160000, 16, 512)
    assert whole["optim_wrapper"]["paramwise_cfg"] == {"decay_rate": 0.65}
    assert round(whole["schedule"]["warmup_fraction"] * whole["steps"]) == 1500
    test_cfg = {key: derived["model"]["test_cfg"][key] for key in ("mode", "crop_size", "stride")}
    assert test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)}
    assert (whole["optim_wrapper"]["optimizer"]["lr"], whole["model"]["backbone"]["drop_path_rate"]) == (7e-4, 0.1)
    for path in ROWS:
        config = load_config(path)
        config["model"]["backbone"]["encoder"] = "vit_base"
        config["use_tta"] = False
        assert config == whole, path.stem


def test_rows_have_the_neck_and_heads_of_mmsegs_own_beit_config(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("_base_ = ['mmseg::_base_/models/upernet_beit.py']\n")
    theirs = Config.fromfile(str(tmp_path / "theirs.py")).model.to_dict()
    ours = derive(load_config(CONFIG_FOLDER / "ade20k_160k_vit_base_splitmask_ade20k.py"), 150)["model"]
    for head in ("decode_head", "auxiliary_head"):
        # Ours becomes synchronised where there are several GPUs.
        assert (theirs[head].pop("norm_cfg")["type"], ours[head].pop("norm_cfg")["type"]) == ("SyncBN", "BN")
        assert theirs[head] == ours[head]
    with torch.device("meta"):
        backbone, neck = MODELS.build(ours["backbone"]), MODELS.build(theirs["neck"])
    assert backbone.encoder.out_indices == tuple(theirs["backbone"]["out_indices"]) == (3, 5, 7, 11)
    shapes = [[p.shape for p in module.parameters()] for module in (backbone.pyramid, neck)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 8
    kinds = [{type(m).__name__ for m in module.modules()} for module in (backbone.pyramid, neck)]
    assert all("SyncBatchNorm" in names for names in kinds)


def test_published_numbers_stand_in_the_head_comments() -> None:
    published = {"random": 25.4, "deit": 46.1, "beit_imagenet": 45.6, "beit_ade20k": 45.6, "splitmask_ade20k": 45.7}
    for row, miou in published.items():
        text = (CONFIG_FOLDER / f"ade20k_160k_vit_base_{row}.py").read_text(encoding="utf-8")
        assert re.search(r"published mIoU ([\d.]+\d)", text).group(1) == str(miou)


def test_cityscapes_ids_are_those_of_its_classes() -> None:
    """The ids of the 19 evaluated classes, from the data set's own table of 34 labels: the rest is void."""
    void = {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30}
    layout = make_layout(load_config(CONFIG_FOLDER / "cityscapes_80k_vit_base.py")["layout"])
    assert list(layout.label_ids) == [i for i in range(34) if i not in void] and len(layout.label_ids) == 19


GOLDEN = ROOT / "tests" / "golden" / "segmentor_groups.txt"


def test_lr_and_decay_of_every_parameter_are_those_of_the_golden_file() -> None:
    """Each line: name, lr and weight decay of a parameter of the ADE20K row of SplitMask, ViT-B."""
    config = derive(load_config(CONFIG_FOLDER / "ade20k_160k_vit_base_splitmask_ade20k.py"), num_classes=150)
    with torch.device("meta"):
        model = build(config)
    wrapper = build_optim_wrapper(model, Config({"optim": {"type": "OptimWrapper", **config["optim_wrapper"]}}).optim)
    found = {
        name: f"{name} {group['lr']:.4e} {group['weight_decay']:g}"
        for group in wrapper.optimizer.param_groups
        for name in group["names"]
    }
    lines = [found[name] for name, _ in model.named_parameters()]
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()
