"""A recipe and a detector: its values reach the engine's parts, and the encoder sees what it was pre-trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from det_configs.common.recipe import DetRecipe
from pretrain.data.pixel_norm import PixelNorm
from splitmask_backbones.pyramid import LayerNorm2d
from tests.helpers.pixels import seen_by
from tools.detection.engines import build_detector
from tools.detection.targets import Target

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SMALL = DetRecipe(
    encoder="vit_tiny",
    embed_dim=24,
    depth=2,
    out_channels=8,
    box_head_width=8,
    mask_head_width=8,
    mask_head_convs=1,
    img_size=64,
    anchor_sizes=(8, 16, 24, 32, 48),
    detections_per_image=3,
    rpn_post_nms_test=20,
)
OTHERS: dict[str, Any] = {
    "anchor_sizes": (7, 15, 31, 63, 127),
    "aspect_ratios": (0.3, 0.7),
    "rpn_pre_nms_train": 11,
    "rpn_post_nms_train": 12,
    "rpn_pre_nms_test": 13,
    "rpn_post_nms_test": 14,
    "rpn_batch": 15,
    "rois_per_image": 16,
    "roi_positive_fraction": 0.4,
    "score_threshold": 0.11,
    "nms_threshold": 0.66,
    "detections_per_image": 17,
}
"""All different from each other and from the defaults."""
HEADS: dict[str, Any] = {
    "out_channels": 20,
    "rpn_convs": 2,
    "box_head": "4conv1fc",
    "box_head_width": 18,
    "mask_head_convs": 3,
    "mask_head_width": 19,
    "mask_head_norm": "LN",
}
"""As OTHERS: all different from each other and from the defaults."""


@pytest.mark.parametrize("engine", ENGINES)
def test_the_encoder_sees_the_pixels_of_its_pre_training(engine: str) -> None:
    detector = build_detector(engine, SMALL, 2)
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 5:30] = 1
    target = Target(torch.tensor([[5.0, 10, 30, 40]]), torch.tensor([1]), masks)
    expected = PixelNorm()(image[None])
    for call in (lambda: detector.train()(([image], [target])), lambda: detector.eval().detect(image, (64, 64))):
        torch.testing.assert_close(seen_by(detector.encoder, call), expected, atol=1e-4, rtol=0)


def layers(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Returns the kinds of a head's layers with weights, in order, and what they give out."""
    found = [item for item in module.modules() if isinstance(item, torch.nn.Conv2d | torch.nn.Linear | LayerNorm2d)]
    return [(type(item).__name__, len(item.weight)) for item in found]


def test_values_reach_torchvisions_parts() -> None:
    model = build_detector("torchvision", SMALL.override(OTHERS | HEADS), 2).model
    rpn, heads = model.rpn, model.roi_heads
    assert [size for (size,) in rpn.anchor_generator.sizes] == list(OTHERS["anchor_sizes"])
    assert set(rpn.anchor_generator.aspect_ratios) == {OTHERS["aspect_ratios"]}
    assert rpn._pre_nms_top_n == {"training": 11, "testing": 13}
    assert rpn._post_nms_top_n == {"training": 12, "testing": 14}
    assert rpn.fg_bg_sampler.batch_size_per_image == 15
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (16, 0.4)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.11, 0.66, 17)
    conv, norm = ("Conv2d", 20), ("LayerNorm2d", 20)
    assert layers(rpn.head.conv) == [conv] * 2
    assert layers(heads.box_head) == [conv, norm] * 4 + [("Linear", 18)]
    assert layers(heads.mask_head) == [("Conv2d", 19), ("LayerNorm2d", 19)] * 3
    two_layers = build_detector("torchvision", SMALL, 2).model
    assert layers(two_layers.rpn.head.conv) == [("Conv2d", 8)]
    assert layers(two_layers.roi_heads.box_head) == [("Linear", 8)] * 2
    assert layers(two_layers.roi_heads.mask_head) == [("Conv2d", 8)]


@pytest.mark.detectron2
def test_values_reach_detectron2s_parts() -> None:
    model = build_detector("detectron2", SMALL.override(OTHERS), 2).model
    rpn, heads = model.proposal_generator, model.roi_heads
    for cells, size in zip(rpn.anchor_generator.cell_anchors, OTHERS["anchor_sizes"], strict=True):
        width, height = (cells[:, 2:] - cells[:, :2]).T
        torch.testing.assert_close((width * height).sqrt(), torch.full((2,), float(size)))
        torch.testing.assert_close(height / width, torch.tensor(OTHERS["aspect_ratios"]))
    assert rpn.pre_nms_topk == {True: 11, False: 13} and rpn.post_nms_topk == {True: 12, False: 14}
    assert rpn.batch_size_per_image == 15
    assert (heads.batch_size_per_image, heads.positive_fraction) == (16, 0.4)
    boxes = heads.box_predictor
    assert (boxes.test_score_thresh, boxes.test_nms_thresh, boxes.test_topk_per_image) == (0.11, 0.66, 17)
