"""Targets: the annotated box where the crop leaves it whole, drawn anew where it is cut; nothing of it is rounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader

from det_configs.common.coco import PAPER_3X
from pretrain.training.distributed import make_fabric
from tools.detection.coco import read_coco
from tools.detection.records import ImageRecord, Instance
from tools.detection.targets import Target, extent_of, extent_within, make_target
from tools.detection.transforms import Placement, training_placement

SIZE = (48, 64)


def record_of(*instances: Instance) -> ImageRecord:
    return ImageRecord(1, "x.png", *SIZE, list(instances))


def polygon(box: tuple[float, float, float, float], *outline: float, label: int = 0) -> Instance:
    return Instance(box, label, [list(outline)], 100.0, crowd=False)


def whole(size: tuple[int, int], flip: bool = False) -> Placement:
    return Placement(SIZE, size, (0, 0), size, size, flip)


def test_a_box_is_the_annotated_one_placed_at_sub_pixel_places() -> None:
    triangle = polygon((10.25, 10.5, 30.0, 20.75), 10.25, 10.5, 30, 10.5, 10.25, 20.75, label=1)
    target = make_target(record_of(triangle), whole((72, 96)))
    assert target.boxes.dtype == torch.float32 and target.labels.tolist() == [2]
    assert target.boxes.tolist() == [[15.375, 15.75, 45.0, 31.125]]
    flipped = make_target(record_of(triangle), whole((72, 96), flip=True))
    assert flipped.boxes.tolist() == [[51.0, 15.75, 80.625, 31.125]]
    assert torch.equal(flipped.masks, target.masks.flip(2))


def test_what_is_cropped_away_and_crowds_stay_out() -> None:
    square = (10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0)
    instances = [
        polygon((10, 10, 30, 20), *square, label=1),
        dataclasses.replace(polygon((10, 10, 30, 20), *square), crowd=True),
        polygon((50, 40, 60, 44), 50, 40, 60, 40, 60, 44, 50, 44),
    ]
    doubled = Placement(SIZE, (96, 128), (10, 10), (64, 64), (64, 64))
    target = make_target(record_of(*instances), doubled)
    assert target.boxes.tolist() == [[10, 10, 50, 30]]  # twice the box, minus the crop's corner; the last is cut off
    assert target.labels.tolist() == [2]
    assert target.masks.shape == (1, 64, 64) and int(target.masks.sum()) == 40 * 20
    flipped = make_target(record_of(*instances), dataclasses.replace(doubled, flip=True))
    assert flipped.boxes.tolist() == [[14, 10, 54, 30]]
    empty = make_target(record_of(instances[1]), doubled)
    assert empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 64, 64)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("as_rle", [False, True])
def test_a_box_that_the_crop_cuts_is_drawn_around_what_is_left(flip: bool, as_rle: bool) -> None:
    """A staircase down to the right: the crop's left half of it is as low as its first step alone."""
    steps = [8, 8, 24, 8, 24, 40, 16, 40, 16, 16, 8, 16]
    box = (8.0, 8.0, 24.0, 40.0)
    segmentation: Any = [list(map(float, steps))]
    if as_rle:
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *SIZE))
    stairs = Instance(box, 0, segmentation, 100.0, crowd=False)
    # x: 0 to 32 of the doubled image, 0 to 16 of the source
    left = Placement(SIZE, (96, 128), (0, 0), (96, 32), (96, 32), flip)
    target = make_target(record_of(stairs), left)
    assert target.boxes.tolist() == [[0, 16, 16, 32] if flip else [16, 16, 32, 32]]  # clipped alone, it would end at 80
    assert int(target.masks.sum()) == 16 * 16
    # From x 8.5 on in the source, at sub-pixel scale: 1.5 times, less 12 pixels.
    right = Placement(SIZE, (72, 96), (0, 12), (72, 60), (72, 60), flip)
    x1, x2 = (60 - 24, 60) if flip else (0, 24)
    assert make_target(record_of(stairs), right).boxes.tolist() == [[x1, 12, x2, 60]]


def test_an_object_without_a_pixel_is_left_out() -> None:
    thin = polygon((10.0, 10.0, 40.0, 10.4), 10, 10, 40, 10, 40, 10.4, 10, 10.4)
    assert len(make_target(record_of(thin), whole((12, 16))).labels) == 0
    assert len(make_target(record_of(thin), whole((480, 640))).labels) == 1
    # A corner of the box is in the crop, but nothing of the object.
    triangle = polygon((0, 0, 40, 40), 0, 0, 40, 0, 0, 40)
    corner = Placement(SIZE, SIZE, (30, 30), (18, 34), (18, 34))
    assert len(make_target(record_of(triangle), corner).labels) == 0


def test_the_extent_of_a_cut_polygon_is_that_of_its_finely_drawn_mask() -> None:
    rng, fine, size = np.random.default_rng(0), 20, (30, 40)
    num_cut = num_outside = 0
    for _ in range(150):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
        radii = rng.uniform(2, 30, len(angles))
        centre = rng.uniform(-10, 50, 2)
        outline = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        found = extent_within(outline, size)
        scaled = (outline * fine).ravel().tolist()
        drawn = coco_mask.decode(coco_mask.frPyObjects([scaled], size[0] * fine, size[1] * fine))[..., 0]
        expected = np.array(extent_of(drawn)) / fine
        corners = np.concatenate([outline.min(axis=0), outline.max(axis=0)])
        num_cut += bool(drawn.any() and np.abs(np.clip(corners, 0, (40, 30, 40, 30)) - found).max() > 1)
        num_outside += not drawn.any()
        # A tip thinner than a fine pixel is not drawn.
        assert np.abs(found - expected).max() < 0.75, outline
    assert num_cut > 20 and num_outside > 5


def test_the_extent_at_the_border() -> None:
    def extent(*outline: float) -> list[float]:
        return extent_within(np.reshape(outline, (-1, 2)).astype(float), (30, 40)).tolist()

    assert extent(-5, -5, 50, -5, 50, 50, -5, 50) == [0, 0, 40, 30]  # all of the image
    assert extent(0, 0, 40, 0, 40, 30, 0, 30) == [0, 0, 40, 30]  # exactly the image
    assert extent(-9, 5, 0, 5, 0, 20, -9, 20) == [0, 0, 0, 0]  # touches it from outside
    assert extent(-9, -9, 5, -9, 5, 0, -9, 0) == [0, 0, 0, 0]
    assert extent(-5, -9, 20, -9, -5, 16) == [0, 0, 11, 11]  # over a corner
    # In at the left, out again and around the corner, which is not part of it.
    assert extent(10, 20, -8, 20, -8, -8, 20, -8, 20, -4, -4, -4, -4, 18, 10, 18) == [0, 18, 10, 20]


def test_large_images_cost_what_their_objects_do() -> None:
    """Only what the crop keeps is decoded: the same masks and boxes as from whole ones, of RLEs and polygons."""
    rng, size = np.random.default_rng(0), (210, 330)
    place = training_placement(dataclasses.replace(PAPER_3X, img_size=64, scale_range=(0.5, 2.0), crop=0.7))
    for _ in range(40):
        mask = np.zeros(size, np.uint8)
        y, x = int(rng.integers(0, 200)), int(rng.integers(0, 320))
        mask[y : y + int(rng.integers(1, 120)), x : x + int(rng.integers(1, 200))] = 1
        mask &= rng.random(size) < 0.8
        mask[y, x] = 1
        rle = coco_mask.encode(np.asfortranarray(mask))
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1))
        record = ImageRecord(1, "a", *size, [Instance(box, 0, {"size": list(size), "counts": rle["counts"]}, 1, False)])
        placement = place(size, rng)
        target, whole = make_target(record, placement), placement.mask(mask)
        if whole.any():
            assert target.masks is not None and np.array_equal(target.masks[0].numpy(), whole)
        else:
            assert len(target.boxes) == 0
        alone = make_target(record, placement, with_masks=False)
        assert alone.masks is None and len(alone.boxes) >= len(target.boxes)


def test_boxes_of_real_images_are_those_annotated(shared_data: Path) -> None:
    """Boxes of whole pixels, around masks resized by their nearest pixel, had a mean IoU of 0.962 at short side 640."""
    root = shared_data / "coco_tiny"
    split = read_coco(root / "annotations/instances_train2017.json", root / "train2017")
    place = training_placement(dataclasses.replace(PAPER_3X, img_size=640, scale_range=(1.0, 1.0), flip=0.0, crop=0.0))
    count, mask_ious = 0, []
    for record in split.images[:20]:
        placement = place((record.height, record.width), np.random.default_rng(0))
        target = make_target(record, placement)
        height, width = placement.scaled_size
        scale = np.array([width / record.width, height / record.height] * 2)
        seen = [i for i in record.instances if not i.crowd]
        assert len(seen) == len(target.boxes)
        np.testing.assert_allclose(target.boxes, [np.array(i.box) * scale for i in seen], atol=1e-4)
        for mask, box in zip(target.masks.numpy(), target.boxes.numpy(), strict=True):
            drawn = np.array(extent_of(mask))
            inner = np.prod(np.minimum(drawn, box)[2:] - np.maximum(drawn, box)[:2])
            mask_ious.append(inner / (np.prod(box[2:] - box[:2]) + np.prod(drawn[2:] - drawn[:2]) - inner))
        count += len(seen)
    assert count > 100
    assert np.mean(mask_ious) > 0.95  # the masks lie in their boxes, up to whole pixels


class Seeing(nn.Module):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        self.seen = batch
        return self.weight.sum()


def test_mixed_precision_rounds_no_box() -> None:
    """Fabric casts a float tensor on its way into the model, wherever it finds it; it does not look into a target."""
    boxes = torch.tensor([[1001.3, 0.1, 1002.7, 333.3]])
    target = Target(boxes, torch.tensor([1]), torch.ones(1, 2, 2, dtype=torch.uint8))
    fabric = make_fabric("bf16")
    module = Seeing()
    model = fabric.setup(module)
    model(fabric.to_device({"target": [target], "plain": [{"boxes": boxes}]}))
    assert module.seen["plain"][0]["boxes"].dtype == torch.bfloat16
    assert module.seen["plain"][0]["boxes"][0, 0] == 1000  # what would become of the box
    seen = module.seen["target"][0].boxes.cpu()
    assert seen.dtype == torch.float32 and torch.equal(seen, boxes)


def test_a_target_moves_as_a_whole() -> None:
    target = Target(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1, 2, 2, dtype=torch.uint8))
    moved = target.to("meta")
    assert {moved.boxes.device.type, moved.labels.device.type, moved.masks.device.type} == {"meta"}
    assert target.boxes.device.type == "cpu"


@pytest.mark.gpu
def test_a_loader_pins_a_target() -> None:
    target = Target(torch.zeros(1, 4), torch.tensor([1]), torch.ones(1, 2, 2, dtype=torch.uint8))
    loader: Any = DataLoader([0], collate_fn=lambda _: [target], pin_memory=True)  # type: ignore[arg-type]
    (pinned,) = next(iter(loader))
    assert pinned.boxes.is_pinned() and pinned.labels.is_pinned() and pinned.masks.is_pinned()
    assert pinned.to("cuda").boxes.is_cuda


def test_mask_targets_may_be_cut_out_by_any_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient flows through them; torchvision's deterministic way takes every pixel of a mask for each box."""
    from torchvision.models.detection import roi_heads

    import tools.detection.torchvision_engine  # noqa: F401

    seen = []

    def spy(masks: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return masks

    monkeypatch.setattr(roi_heads, "roi_align", spy)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        roi_heads.project_masks_on_boxes(torch.ones(1, 4, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 2)
        assert seen == [False]
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
