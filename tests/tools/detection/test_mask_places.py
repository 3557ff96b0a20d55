"""A mask head that learned its targets to the pixel finds the objects where they are, with either engine."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from tools.detection.detector import Detector
from tools.detection.targets import Target

SIDE = 64  # of the image that the model sees
INSIDE = ((30.0, 34.0), (20.5, 40.5), (25.2, 30.7))
AT_BORDERS = ((0.0, 32.0), (64.0, 32.0), (32.0, 0.0), (32.0, 64.0))


def disc(side: int, diameter: float, centre: tuple[float, float]) -> np.ndarray:
    """Returns an image of `side` with a disc around a centre (x, y)."""
    ys, xs = np.mgrid[:side, :side] + 0.5
    return (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2 <= (diameter / 2) ** 2


def box_of(mask: np.ndarray) -> Tensor:
    ys, xs = mask.nonzero()
    return torch.tensor([[xs.min(), ys.min(), xs.max() + 1.0, ys.max() + 1.0]], dtype=torch.float32)


def found_by(detector: Detector, size: tuple[int, int]) -> np.ndarray:
    (rle,) = detector.detect(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), size)["masks"]
    return coco_mask.decode(rle).astype(bool)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@cache
def transform_of(**options: Any) -> Any:
    """Returns that of a detector of `mask_rcnn`, in training."""
    from splitmask_backbones.torchvision import mask_rcnn

    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 1, "out_channels": 8, "box_head_width": 8, "mask_head_width": 8}
    return mask_rcnn("vit_tiny", img_size=SIDE, **sizes, **options).transform.train()


def torchvision_detector(mask: np.ndarray) -> Detector:
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    from tools.detection.torchvision_engine import TorchvisionDetector

    class Learned(nn.Module):
        """Finds what torchvision's loss asked for."""

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
            if targets is not None:
                targets = transform_of(resize=False)(images, targets)[1]
                masks, boxes = targets[0]["masks"], targets[0]["boxes"]
                self.target = project_masks_on_boxes(masks, boxes, torch.tensor([0]), 28)[:, None]
                return {"loss_mask": self.target.sum()}
            found = {"boxes": box_of(mask), "labels": torch.tensor([1]), "scores": torch.ones(1)}
            return [{**found, "masks": self.target}]

    detector = TorchvisionDetector(Learned())
    target = Target(box_of(mask), torch.tensor([1]), torch.from_numpy(mask[None]).to(torch.uint8))
    detector(([torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)], [target]))
    return detector


def detectron2_detector(mask: np.ndarray) -> Detector:
    from detectron2.structures import BitMasks, Boxes

    from tools.detection.detectron2_engine import Detectron2Detector

    class Learned(nn.Module):
        def inference(self, inputs: Any, do_postprocess: bool) -> list[Any]:
            boxes = box_of(mask)
            target = BitMasks(torch.from_numpy(mask[None])).crop_and_resize(boxes, 28)[:, None].float()
            found = {"pred_boxes": Boxes(boxes), "pred_classes": torch.tensor([0]), "scores": torch.ones(1)}
            return [SimpleNamespace(**found, get_fields=lambda: {"pred_masks": target})]

    return Detectron2Detector(Learned())


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "build", [torchvision_detector, pytest.param(detectron2_detector, marks=pytest.mark.detectron2)]
)
def test_what_was_learned_to_the_pixel_comes_back(build: Any, times: int) -> None:
    side = times * SIDE
    for diameter, least in ((6, 0.84), (10, 0.9), (20, 0.94), (40, 0.96)):
        for centre in (*INSIDE, *AT_BORDERS):
            mask = disc(SIDE, diameter, centre)
            found, wanted = found_by(build(mask), (side, side)), mask.repeat(times, 0).repeat(times, 1)
            assert iou(found, wanted) >= least, (diameter, centre)
            lag = np.argwhere(found).mean(0) - np.argwhere(wanted).mean(0)
            assert np.abs(lag).max() < 0.15 * times, (diameter, centre)


@pytest.mark.parametrize("times", [1, 2])
def test_torchvisions_own_training_and_detections_have_the_same_places(times: int) -> None:
    """Of a model that resizes by itself, as `mask_rcnn` does unless told otherwise."""
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    transform = transform_of(min_size=times * SIDE, max_size=times * SIDE)
    images = [torch.zeros(3, SIDE, SIDE)]
    for diameter, least in ((6, 0.82), (10, 0.9), (20, 0.94), (40, 0.96)):
        for centre in (*INSIDE, *AT_BORDERS):
            mask = disc(SIDE, diameter, centre)
            target = {"boxes": box_of(mask), "masks": torch.from_numpy(mask[None]).to(torch.uint8)}
            batch, placed = transform.train()(images, [target])
            boxes, masks = placed[0]["boxes"], placed[0]["masks"]
            assert torch.equal(boxes, times * box_of(mask)) and masks.shape[-2:] == batch.tensors.shape[-2:]
            learned = project_masks_on_boxes(masks, boxes, torch.tensor([0]), 28)[:, None]
            found = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.ones(1), "masks": learned}
            (found,) = transform.eval().postprocess([found], batch.image_sizes, [(SIDE, SIDE)])
            assert torch.equal(found["boxes"], box_of(mask)) and found["masks"].shape == (1, 1, SIDE, SIDE)
            assert iou(found["masks"][0, 0].numpy() >= 0.5, mask) >= least, (diameter, centre)
            assert target["masks"].dtype == torch.uint8, "the caller's stay as they are"


def test_at_corners_is_between_the_pixels() -> None:
    from splitmask_backbones.torchvision_masks import at_corners

    masks = torch.zeros(2, 5, 4, dtype=torch.uint8)
    masks[0, 1:4, 2:] = 1
    masks[1, 0, 0] = 1
    padded = np.pad(masks.numpy(), ((0, 0), (1, 0), (1, 0)), mode="edge")
    expected = [[[padded[n, y : y + 2, x : x + 2].mean() for x in range(4)] for y in range(5)] for n in range(2)]
    assert at_corners(masks).tolist() == expected
    assert at_corners(masks[:0]).shape == (0, 5, 4)
