"""mmseg's segmentor in the training loop, and its evaluation against values by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.seg_data import make_data

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from pretrain.training.distributed import make_fabric
from splitmask_backbones import create_encoder, save_encoder
from tools.finetuning.options import FinetuneOptions
from tools.segmentation.config import config_path, derive
from tools.segmentation.evaluate import evaluate
from tools.segmentation.model import Segmentor, build_optimizer, build_segmentor, import_modules
from tools.segmentation.recipe import SegRecipe
from tools.segmentation.task import SegmentationTask

TINY = ["embed_dim=24", "depth=2", "out_channels=8"]
GIVEN = {"overrides": [*(f"model.backbone.{pair}" for pair in TINY), "model.decode_head.channels=8"], "img_size": 64}


@pytest.fixture(scope="module")
def recipe() -> SegRecipe:
    return SegRecipe.load(config_path("demo")).override(GIVEN)


@pytest.fixture(scope="module")
def segmentor(recipe: SegRecipe) -> Segmentor:
    torch.manual_seed(0)
    return build_segmentor(derive(recipe.config, 3)["model"])


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        labels = torch.randint(3, (1, 64, 64), generator=generator)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (64, 64)})
        samples.append({"inputs": torch.randint(256, (3, 64, 64), dtype=torch.uint8), "data_samples": sample})
    return pseudo_collate(samples)


def test_the_loss_is_the_sum_of_mmsegs(segmentor: Segmentor) -> None:
    segmentor.eval()  # no dropout: two passes are equal
    data = batch()
    found = segmentor(data)
    prepared = segmentor.model.data_preprocessor(data, True)
    losses = segmentor.model(**prepared, mode="loss")
    expected = sum(value.mean() for name, value in losses.items() if "loss" in name)
    torch.testing.assert_close(found["loss"], expected)
    assert set(found) == {"loss", "pixel_accuracy"} and 0 <= found["pixel_accuracy"] <= 1
    assert float(found["pixel_accuracy"]) == pytest.approx(float(losses["decode.acc_seg"]) / 100)


def test_moving_it_moves_mmsegs_preprocessor(recipe: SegRecipe) -> None:
    moved = build_segmentor(derive(recipe.config, 3)["model"]).to(torch.device("meta"))
    assert moved.model.data_preprocessor.device == torch.device("meta")


def test_the_optimizer_is_the_configs(segmentor: Segmentor, recipe: SegRecipe) -> None:
    optimizer = build_optimizer(segmentor, recipe.config["optim_wrapper"])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert max(group["lr"] for group in optimizer.param_groups) == recipe.lr
    with pytest.raises(ValueError, match="use accumulate=N"):
        build_optimizer(segmentor, {**recipe.config["optim_wrapper"], "accumulative_counts": 2})
    with pytest.raises(ValueError, match="AmpOptimWrapper has no effect here: use --precision bf16"):
        build_optimizer(segmentor, {**recipe.config["optim_wrapper"], "type": "AmpOptimWrapper"})
    with pytest.raises(ValueError, match="does not build a segmentor"):
        build_segmentor({"type": "EncoderDecoder"})
    with pytest.raises(ValueError, match="unknown type 'AdmW' in the config: did you mean 'AdamW'"):
        build_optimizer(segmentor, {**recipe.config["optim_wrapper"], "optimizer": {"type": "AdmW", "lr": 1.0}})


def test_modules_of_a_config_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_heads_of_a_test.py").write_text(
        "from mmseg.models import FCNHead\nfrom mmseg.registry import MODELS\n\n"
        "@MODELS.register_module()\nclass HeadOfATest(FCNHead):\n    pass\n"
    )
    config = {"custom_imports": {"imports": ["splitmask_backbones.mmseg", "my_heads_of_a_test"]}}
    with pytest.raises(ValueError, match=r"my_heads_of_a_test cannot be imported \(ModuleNotFound.*PYTHONPATH"):
        import_modules(config)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_modules(config)
    assert MODELS.get("HeadOfATest") is not None
    import_modules({})


def test_a_misspelt_type_is_told_from_the_nearest(recipe: SegRecipe) -> None:
    model = derive(recipe.config, 3)["model"]
    head = {**model["decode_head"], "type": "UPerHed"}
    with pytest.raises(ValueError, match="unknown type 'UPerHed' in the config: did you mean 'UPerHead'"):
        build_segmentor({**model, "decode_head": head})


def test_another_encoder_than_the_files_is_told_in_the_configs_words(recipe: SegRecipe, tmp_path: Path) -> None:
    save_encoder(create_encoder("vit_tiny", depth=4), tmp_path / "encoder.safetensors")
    model = derive(recipe.config, 3)["model"]
    file = {"type": "Pretrained", "checkpoint": str(tmp_path / "encoder.safetensors")}
    backbone = {"type": "SplitMaskViT", "encoder": "vit_small", "init_cfg": file}
    with pytest.raises(ValueError, match=r"\(model\.backbone\.encoder=vit_tiny, model\.backbone\.depth=4\)"):
        build_segmentor({**model, "backbone": backbone})


def test_heads_on_the_taps_take_the_encoders_width_wherever_it_is_said(recipe: SegRecipe, tmp_path: Path) -> None:
    save_encoder(create_encoder("vit_tiny", embed_dim=36, depth=4), tmp_path / "encoder.safetensors")
    file = {"type": "Pretrained", "checkpoint": str(tmp_path / "encoder.safetensors")}
    for backbone, width in (
        ({"encoder": "vit_small"}, 384),
        ({"encoder": "vit_tiny", "embed_dim": 24}, 24),
        ({"encoder": None, "init_cfg": file}, 36),
    ):
        model = {**recipe.config["model"], "backbone": {"type": "SplitMaskViT", "pyramid": "taps", **backbone}}
        derived = derive({**recipe.config, "model": model}, 3)["model"]
        assert derived["decode_head"]["in_channels"] == [width] * 4
        assert {x.shape[1] for x in MODELS.build(derived["backbone"])(torch.zeros(1, 3, 32, 32))} == {width}


def test_miou_by_hand(tmp_path: Path) -> None:
    """A segmentor that says 0 everywhere, on labels of which a quarter are 1 and one row is ignored."""
    root = make_data(tmp_path / "data", names=("train", "val"), count=2, size=(8, 8), values=(0, 1))
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    for name in ("0", "1"):
        labels = np.zeros((8, 8), np.uint8)
        labels[:, :2] = 1
        labels[7] = 255
        Image.fromarray(labels).save(root / f"annotations/val/{name}.png")
    options = FinetuneOptions(tmp_path, False, 0, 1, 1, 0.0, None, False, None, False, True)
    task = SegmentationTask(options, "demo", SegRecipe.load(config_path("demo")), {}, root, None)
    task.find_data(("train", "val"))
    fabric = make_fabric()
    identity = task.check_data(SimpleNamespace(path=tmp_path, is_main=True, finished=False), fabric)  # type: ignore[arg-type]
    assert identity["classes"] == ["a", "b", "c"] and set(task.data_report()) == {"train", "val"}
    task.build(None)

    class Zeros(nn.Module):
        def predict(self, data: dict[str, Any]) -> list[Any]:
            for sample in data["data_samples"]:
                sample.pred_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.int64))
            return data["data_samples"]

    dataset = task._dataset("val", task._test_pipeline(False))
    found = evaluate(fabric, Zeros(), dataset, use_tta=False, workers=0)  # type: ignore[arg-type]
    assert found["per_class"] == {"a": 75.0, "b": 0.0, "c": None}  # 7 x 6 of 7 x 8 pixels
    assert (found["mIoU"], found["aAcc"], found["mAcc"]) == (37.5, 75.0, 50.0)
    pipeline = task._test_pipeline(False)
    behind = [step["type"] for step in pipeline].index("SegLabel") + 1
    shrinks = [*pipeline[:behind], {"type": "SegResize", "scale": (4, 4), "keep_ratio": False}, *pipeline[behind:]]
    with pytest.raises(ValueError, match="labels of 4 x 4 pixels .* let SegLabel stand behind what resizes"):
        task._dataset("val", shrinks)
