"""The torchvision adapter: sizes and strides of any image, gradients everywhere, strict weights, stock detectors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, RetinaNet

from splitmask_backbones import VisionTransformer, create_encoder, load_encoder, save_encoder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.pyramid import build_pyramid
from splitmask_backbones.torchvision import StridedAnchors, backbone, mask_rcnn

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 6, "num_heads": 2, "img_size": 64}
HEADS: dict[str, Any] = {
    "out_channels": 16,
    "box_head_width": 16,
    "mask_head_width": 16,
    "mask_head_convs": 1,
    "anchor_sizes": (8, 16, 32, 64, 128),
}


def sample(height: int = 64, width: int = 64, num: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    masks = torch.zeros(num, height, width, dtype=torch.uint8)
    boxes = torch.tensor([[4.0 + 20 * i, 6.0, 20.0 + 20 * i, 30.0] for i in range(num)]).reshape(-1, 4)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": torch.arange(num) % 2 + 1, "masks": masks}
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)), target


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (97, 33)])
@pytest.mark.parametrize("kind", ["simple", "tapped"])
def test_maps_equal_encoder_and_pyramid_at_every_stride(size: tuple[int, int], kind: str) -> None:
    net = backbone("vit_tiny", pyramid=kind, out_channels=16, **TINY).eval()
    x = torch.randn(1, 3, *size)
    maps = net(x)
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    for stride, level in zip((4, 8, 16, 32), maps.values(), strict=False):
        assert level.shape == (1, 16, -(-size[0] // stride), -(-size[1] // stride))
    twin = build_pyramid(kind, net.encoder, 16, 1)
    twin.load_state_dict(net.pyramid.state_dict(), strict=True)
    for level, expected in zip(maps.values(), twin(net.encoder.forward_maps(x), image_size=size), strict=True):
        torch.testing.assert_close(level, expected)
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"encoder", "pyramid"}


def test_anchors_lie_on_the_strides_in_float32() -> None:
    net = backbone("vit_tiny", out_channels=16, **TINY)
    maps = [level.bfloat16() for level in net(torch.randn(1, 3, 40, 600)).values()]
    anchors = StridedAnchors((8, 16, 32, 64, 128), (1.0,), net.strides)(
        type("Images", (), {"image_sizes": [(40, 600)]})(), maps
    )[0]
    assert anchors.dtype == torch.float32
    centres, start = (anchors[:, :2] + anchors[:, 2:]) / 2, 0
    for level, stride in zip(maps, (4, 8, 16, 32, 64), strict=True):
        rows, cols = level.shape[-2:]
        expected = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).flip(1) * float(stride)
        assert torch.equal(centres[start : start + rows * cols], expected)
        start += rows * cols
    assert start == len(anchors)


@pytest.mark.parametrize("kind", ["simple", "tapped", "taps"])
@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
def test_every_parameter_gets_a_gradient_and_a_group(kind: str, box_head: str) -> None:
    torch.manual_seed(0)
    model = mask_rcnn("vit_tiny", num_classes=3, pyramid=kind, box_head=box_head, resize=False, **HEADS, **TINY)
    images, targets = zip(sample(), sample(50, 60), strict=True)
    losses = model(list(images), list(targets))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    by_name = {name: group for group in groups for name in group["names"]}
    assert set(by_name) == {name for name, _ in model.named_parameters()}
    assert by_name["backbone.encoder.patch_embed.proj.weight"]["lr"] == 0.5**7
    assert by_name["backbone.encoder.blocks.5.attn.qkv.weight"]["lr"] == 0.5
    assert by_name["roi_heads.box_predictor.cls_score.weight"]["lr"] == 1.0
    assert by_name["backbone.encoder.pos_embed"]["weight_decay"] == 0.0


def test_bfloat16_autocast_changes_the_losses_little_and_boxes_stay_float32() -> None:
    torch.manual_seed(0)
    model = mask_rcnn("vit_tiny", num_classes=3, resize=False, **HEADS, **TINY)
    image, target = sample()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model([image], [target]))
    for name, value in losses[0].items():
        assert losses[1][name].dtype == torch.float32
        assert float(losses[1][name].detach()) == pytest.approx(float(value.detach()), rel=0.1, abs=0.02), name
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval()([image])[0]
    assert found["boxes"].dtype == torch.float32 and found["scores"].dtype == torch.float32


def test_an_image_without_objects_trains() -> None:
    model = mask_rcnn("vit_tiny", num_classes=3, resize=False, **HEADS, **TINY)
    image, target = sample(num=0)
    losses = model([image], [target])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("resize", [True, False])
def test_a_detector_without_masks_does_not_look_at_those_of_its_targets(resize: bool) -> None:
    model = mask_rcnn("vit_tiny", num_classes=3, resize=resize, masks=False, min_size=64, **HEADS, **TINY)
    image, target = sample()
    losses = model([image], [target | {"masks": torch.zeros(0)}])
    assert "loss_mask" not in losses and all(torch.isfinite(value) for value in losses.values())


def test_sizes_are_kept_or_resized_as_asked() -> None:
    image, _ = sample(50, 70)
    with torch.no_grad():
        kept = mask_rcnn("vit_tiny", num_classes=3, resize=False, box_score_thresh=0.0, **HEADS, **TINY).eval()
        assert kept.transform([image])[0].tensors.shape == (1, 3, 64, 80)  # padded to the patch size only
        assert kept([image])[0]["masks"].shape[1:] == (1, 28, 28)
        options = {"min_size": 100, "max_size": 200, "box_score_thresh": 0.0, "box_detections_per_img": 7}
        stock = mask_rcnn("vit_tiny", num_classes=3, **options, **HEADS, **TINY).eval()
        found = stock([image])[0]
        assert found["masks"].shape == (7, 1, 50, 70)
        assert float(found["boxes"].max()) <= 70


def test_stock_detectors_take_the_backbone() -> None:
    net = backbone("vit_tiny", out_channels=16, **TINY)
    image, target = sample()
    boxes_only = {"boxes": target["boxes"], "labels": target["labels"]}
    sizes = tuple((s,) for s in (8, 16, 32, 64, 128))
    anchors = StridedAnchors(sizes, (0.5, 1.0, 2.0), net.strides)
    for model in (
        FasterRCNN(net, num_classes=3, min_size=64, max_size=64),
        RetinaNet(net, num_classes=3, anchor_generator=anchors, min_size=64, max_size=64),
    ):
        assert all(torch.isfinite(value) for value in model([image], [boxes_only]).values())


def test_weights_are_loaded_strictly_and_decide(tmp_path: Path) -> None:
    encoder = create_encoder("vit_tiny", depth=4)
    save_encoder(encoder, tmp_path / "e.safetensors")
    model = mask_rcnn(weights=tmp_path / "e.safetensors", num_classes=2, **HEADS)
    assert isinstance(model.backbone.encoder, VisionTransformer) and model.backbone.encoder.depth == 4
    for name, value in model.backbone.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name
    with pytest.raises(ValueError, match="depth"):
        mask_rcnn("vit_tiny", weights=tmp_path / "e.safetensors")
    ready = load_encoder(tmp_path / "e.safetensors", final_norm=False)
    assert backbone(ready).encoder is ready
    assert backbone().encoder.embed_dim == 384  # vit_small by default
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert set(copied.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "vit_smal"}, "did you mean 'vit_small'"),
        ({"box_detections_per_image": 5}, "did you mean 'box_detections_per_img'"),
        ({"encodr": "vit_tiny"}, "did you mean 'encoder'"),
        ({"drop_path": 0.1}, "did you mean 'drop_path_rate'"),
        ({"pyramid": "simpel"}, "did you mean 'simple'"),
        ({"box_head": "fc2"}, "did you mean '2fc'"),
        ({"anchor_sizes": (8, 16)}, "one size per level: 5"),
    ],
)
def test_wrong_arguments_name_the_right_ones(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_rcnn(**{"encoder": "vit_tiny", **arguments})


def test_a_misspelt_argument_of_the_backbone_is_its_own() -> None:
    with pytest.raises(ValueError, match="did you mean 'num_extra_levels'"):
        backbone("vit_tiny", num_extra_levls=1)
    with pytest.raises(ValueError, match="num_extra_levels=3: torchvision has names for 0 to 2"):
        backbone("vit_tiny", num_extra_levels=3)


@pytest.mark.parametrize("name", ["box_roi_pool", "mask_roi_pool"])
def test_boxes_are_pooled_where_they_lie_at_the_level_of_their_size(name: str) -> None:
    """Maps that hold their own places and strides; the level of a box is that of FPN's equation 1."""
    model: Any = mask_rcnn("vit_tiny", num_classes=2, **TINY, **HEADS)
    maps = {}
    for level, stride in zip("0123", (4, 8, 16, 32), strict=True):
        places = torch.arange(1024 // stride) * float(stride)  # torchvision takes a cell's value for its corner's
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        maps[level] = torch.stack([columns, rows, torch.full_like(rows, stride)])[None]
    corners = [(140, 240), (200, 300), (300, 400), (500, 600), (1000, 1000)]
    boxes = torch.tensor([[100.0, 200.0, x, y] for x, y in corners])
    pooled = getattr(model.roi_heads, name)(maps, [boxes], [(1024, 1024)]).mean((2, 3))
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (4 + (sides / 224).log2()).floor().clamp(2, 5)
    assert pooled[:, 2].tolist() == (2**levels).tolist() and len(set(levels.tolist())) == 4
    torch.testing.assert_close(pooled[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2, atol=1.0, rtol=0)


@pytest.mark.parametrize(("name", "bins"), [("box_roi_pool", 7), ("mask_roi_pool", 14)])
def test_a_bin_is_the_mean_of_two_points_each_way(name: str, bins: int) -> None:
    """Bins of 4 x 4 cells: their points are 1 and 3 cells in, where nothing is interpolated."""
    model: Any = mask_rcnn("vit_tiny", num_classes=2, **TINY, **HEADS)
    maps = {level: torch.zeros(1, 2, 256 // 2**i, 256 // 2**i) for i, level in enumerate("0123")}
    squares = torch.arange(256.0) ** 2
    maps["0"][0, 0], maps["0"][0, 1] = squares, squares[:, None]
    box = 4 * torch.tensor([[7.0, 2.0, 7.0 + 4 * bins, 2.0 + 4 * bins]])
    pool = getattr(model.roi_heads, name)
    pool.map_levels = lambda boxes: torch.zeros(1, dtype=torch.int64)  # however large they are
    columns, rows = pool(maps, [box], [(1024, 1024)])[0]
    for found, first in ((columns[0], 7), (rows[:, 0], 2)):
        expected = [((first + 4 * i + 1) ** 2 + (first + 4 * i + 3) ** 2) / 2 for i in range(bins)]
        assert found.tolist() == expected
