"""Several scales and flips: the views of the pipeline, and mmseg's own mean over them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmseg.models import SegTTAModel
from mmseg.utils import register_all_modules

import tools.segmentation.dataset  # noqa: F401 (registers the readers)
from tests.helpers.segmentor import tiny_segmentor
from tools.segmentation.config import CONFIG_FOLDER, load_config
from tools.segmentation.tta import MeanOfViews, tta_pipeline

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PACK = {"type": "SegPack"}


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture(scope="module")
def model():
    return tiny_segmentor((48, 48), (32, 32), mean=[120.0] * 3, std=[60.0] * 3)


def views(pipeline, picture):
    return pseudo_collate([Compose(pipeline)({"img_path": str(picture)})])


def test_views_are_the_scales_of_the_configs_test_size_and_their_mirror_images(picture):
    config = load_config(CONFIG_FOLDER / "ade20k_160k_vit_base_splitmask_ade20k_ms.py")
    assert config["use_tta"] and config["tta"]["ratios"] == RATIOS
    register_all_modules(init_default_scope=True)
    before = copy.deepcopy(config["test_pipeline"])
    found = views(tta_pipeline(config["test_pipeline"], RATIOS, True), picture)
    assert config["test_pipeline"] == before
    shapes = [tuple(view[0].shape[1:]) for view in found["inputs"]]  # (2048, 512) for a picture of 60 x 40
    assert shapes == [(round(512 * r), round(768 * r)) for r in RATIOS for _ in (0, 1)]
    for plain, mirrored in zip(found["inputs"][::2], found["inputs"][1::2], strict=True):
        assert torch.equal(plain[0].flip(-1), mirrored[0]) and not torch.equal(plain[0], mirrored[0])
    assert {sample[0].ori_shape for sample in found["data_samples"]} == {(40, 60)}


def test_without_a_resize_the_image_itself_is_scaled(picture):
    register_all_modules(init_default_scope=True)
    found = views(tta_pipeline([{"type": "SegImage"}, PACK], (0.5, 2.0), False), picture)
    assert [tuple(view[0].shape[1:]) for view in found["inputs"]] == [(20, 30), (80, 120)]


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
def test_thin_images_keep_a_pixel_in_every_view(tmp_path, size):
    register_all_modules(init_default_scope=True)
    Image.new("RGB", size).save(tmp_path / "thin.png")
    found = views(tta_pipeline([{"type": "SegImage"}, PACK], (0.1, 1.0), True), tmp_path / "thin.png")
    assert len(found["inputs"]) == 4
    assert min(min(view[0].shape[1:]) for view in found["inputs"]) == 1


def test_mean_is_that_of_mmseg(model, picture):
    pipeline = tta_pipeline(
        [{"type": "SegImage"}, {"type": "SegResize", "scale": (96, 64), "keep_ratio": True}, PACK], RATIOS, True
    )
    data = views(pipeline, picture)
    theirs = SegTTAModel(module=model).test_step(copy.deepcopy(data))[0]
    single = model.test_step({"inputs": list(data["inputs"][4]), "data_samples": list(data["data_samples"][4])})[0]
    alone = single.pred_sem_seg.data.clone()
    ours = MeanOfViews(model).test_step(data)[0]
    assert ours.pred_sem_seg.data.shape == (1, 40, 60) and not torch.equal(ours.pred_sem_seg.data, alone)
    assert torch.equal(ours.pred_sem_seg.data.flatten(), theirs.pred_sem_seg.data.flatten())
    torch.testing.assert_close(ours.seg_logits.data.sum(0), torch.ones(40, 60))
