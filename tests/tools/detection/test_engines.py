"""Detectors of both engines: the same losses by name, detections in pixels of the original image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from det_configs.common.recipe import DetRecipe
from tools.detection import detectron2_engine
from tools.detection.detector import Detector
from tools.detection.engines import build_detector, choose_engine
from tools.detection.targets import Target

RECIPE = DetRecipe(
    encoder="vit_tiny", out_channels=8, box_head_width=8, mask_head_width=8, mask_head_convs=1, img_size=64,
    anchor_sizes=(8, 16, 24, 32, 48), score_threshold=0.0, detections_per_image=3, rpn_post_nms_test=20,
)  # fmt: skip
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(params=ENGINES)
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return build_detector(request.param, RECIPE, num_classes=2)


def test_losses_have_the_same_names_and_add_up(detector: Detector) -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 5:30] = 1
    target = Target(torch.tensor([[5.0, 10, 30, 40]]), torch.tensor([1]), masks)
    losses = detector.train()(([torch.full((3, 64, 64), 99, dtype=torch.uint8)], [target]))
    assert set(losses) == set(detector.metric_names)
    parts = sum(float(value.detach()) for name, value in losses.items() if name != "loss")
    assert float(losses["loss"].detach()) == pytest.approx(parts, rel=1e-5)
    assert torch.isfinite(losses["loss"])


@pytest.mark.parametrize("engine", ENGINES)
def test_without_masks_there_is_no_mask_head(engine: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(engine, RECIPE.override({"masks": False}), num_classes=2)
    assert not [name for name, _ in detector.named_parameters() if "mask" in name]
    target = Target(torch.tensor([[5.0, 10, 30, 40]]), torch.tensor([1]), None)
    losses = detector.train()(([torch.full((3, 64, 64), 99, dtype=torch.uint8)], [target]))
    assert set(losses) == set(detector.metric_names) == set(Detector.metric_names) - {"loss_mask"}
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    found = detector.eval().detect(torch.zeros(3, 64, 48, dtype=torch.uint8), (64, 48))
    assert found["masks"] is None and len(found["boxes"]) == len(found["scores"]) == 3


def test_detections_are_in_pixels_of_the_original(detector: Detector) -> None:
    """An image shown at half its size: boxes twice as far apart, masks of its own size."""
    image = torch.randint(256, (3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector.eval()
    small, large = detector.detect(image, (64, 48)), detector.detect(image, (128, 96))
    assert len(small["boxes"]) == 3 and set(small["labels"]) <= {0, 1}
    np.testing.assert_allclose(large["boxes"], 2 * small["boxes"], rtol=1e-5)
    np.testing.assert_array_equal(large["scores"], small["scores"])
    assert [coco_mask.decode(rle).shape for rle in large["masks"]] == [(128, 96)] * 3


def test_the_engine_that_is_there_is_chosen() -> None:
    assert choose_engine("torchvision", RECIPE) == "torchvision"
    with pytest.raises(ValueError, match="cascade=true needs --engine detectron2"):
        choose_engine("torchvision", RECIPE.override({"cascade": True}))
    # detectron2's five losses, under the names that torchvision has
    assert set(detectron2_engine.LOSSES.values()) | {"loss"} == set(Detector.metric_names)
