"""Targets on real images: equal to those of detectron2's own mapper, as our LazyConfigs configure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tools.detection.coco import CocoSplit, read_coco
from tools.detection.config import CONFIG_DIR
from tools.detection.targets import make_target
from tools.detection.transforms import Placement

pytestmark = pytest.mark.detectron2


class Recorded:
    """detectron2's augmentations, which keep what they have drawn."""

    def __init__(self, augmentations: Any) -> None:
        self.augmentations = augmentations

    def __call__(self, sample: Any) -> Any:
        self.drawn = self.augmentations(sample)
        return self.drawn


def placement_of(transforms: Any, size: tuple[int, int]) -> Placement:
    """Returns ours of detectron2's transforms: a flip, then a resize, a crop and padding, or resize, crop, resize."""
    from fvcore.transforms.transform import CropTransform

    steps: list[Any] = []
    for transform in transforms.transforms:
        steps += getattr(transform, "transforms", [transform])
    flip = any(type(step).__name__ == "HFlipTransform" for step in steps)
    resizes = [step for step in steps if type(step).__name__ == "ResizeTransform"]
    cuts = [step for step in steps if isinstance(step, CropTransform)]
    scaled = resizes[0].new_h, resizes[0].new_w
    if not cuts:
        return Placement(size, scaled, (0, 0), scaled, scaled, flip)
    (cut,) = cuts
    crop = min(scaled[0], cut.h), min(scaled[1], cut.w)
    # Theirs is flipped first, ours last.
    left = scaled[1] - crop[1] - cut.x0 if flip else cut.x0
    if len(resizes) == 1:
        return Placement(size, scaled, (int(cut.y0), int(left)), crop, (cut.h, cut.w), flip)
    output = resizes[1].new_h, resizes[1].new_w
    y, x = output[0] / crop[0], output[1] / crop[1]
    return Placement(size, (scaled[0] * y, scaled[1] * x), (cut.y0 * y, left * x), output, output, flip)


def mapper_of(config: str) -> Any:
    """Returns detectron2's training mapper of a config file, read as its `lazyconfig_train_net.py` does."""
    import detectron2.data  # noqa: F401 (the files are LazyConfigs where detectron2 has been imported)
    from detectron2.config import LazyConfig, instantiate

    mapper = instantiate(LazyConfig.load(str(CONFIG_DIR / f"{config}.py")).dataloader.train.mapper)
    mapper.augmentations = Recorded(mapper.augmentations)
    return mapper


def real_split(shared_data: Path) -> tuple[CocoSplit, list[dict[str, Any]]]:
    """Returns the same images as this project and as detectron2 read them."""
    from detectron2.data.datasets import load_coco_json

    root = shared_data / "coco_tiny"
    json_path, images = root / "annotations/instances_train2017.json", root / "train2017"
    by_id = {entry["image_id"]: entry for entry in load_coco_json(str(json_path), str(images), "targets_of_a_test")}
    split = read_coco(json_path, images)
    split.images = split.images[::4]
    return split, [by_id[image.id] for image in split.images]


@pytest.mark.parametrize("config", ["coco_3x_vit_small_splitmask_coco", "coco_vitdet_mask_vit_base"])
def test_targets_are_those_of_detectron2s_mapper(shared_data: Path, config: str) -> None:
    jitters = "vitdet" in config
    split, entries = real_split(shared_data)
    mapper = mapper_of(config)
    np.random.seed(0)  # noqa: NPY002 (detectron2's augmentations draw from it)
    flips, crops, num_boxes, num_cut, num_pixels, num_wrong = set(), set(), 0, 0, 0, 0
    for record, entry in zip(split.images, entries, strict=True):
        theirs = mapper(entry)["instances"]
        placement = placement_of(mapper.augmentations.drawn, (record.height, record.width))
        flips.add(placement.flip)
        crops.add(placement.scaled_size != placement.crop_size)
        ours = make_target(record, placement)
        masks = [rasterised(polygons, placement.output_size) for polygons in theirs.gt_masks.polygons]
        seen = [index for index, mask in enumerate(masks) if mask.any()]  # ours without a pixel are left out
        assert (ours.labels - 1).tolist() == theirs.gt_classes[seen].tolist()
        torch.testing.assert_close(ours.boxes, theirs.gt_boxes.tensor[seen], atol=2e-4, rtol=0)
        num_boxes += len(seen)
        whole = [np.clip(placement.box(i.box), 0, placement.crop_size[::-1] * 2) for i in record.instances]
        num_cut += sum(not np.isclose(whole, box.numpy(), atol=0.5).all(axis=1).any() for box in ours.boxes)
        for mask, expected in zip(ours.masks.numpy(), (masks[index] for index in seen), strict=True):
            num_wrong += int((mask != expected).sum())
            num_pixels += int(expected.sum())
    assert flips == {True, False} and num_boxes > 100
    assert True in crops and (jitters or False in crops)
    assert num_cut >= 5  # boxes that the crop has changed by more than clipping
    assert num_wrong < 1e-4 * num_pixels  # theirs are cut before they are drawn, ours while


@pytest.mark.parametrize("config", ["coco_3x_vit_small_splitmask_coco", "coco_vitdet_mask_vit_base"])
def test_images_move_as_by_detectron2s_mapper(shared_data: Path, config: str) -> None:
    """By the sub-pixel shift that fits best: half a pixel beside the targets would be 0.5."""
    split, entries = real_split(shared_data)
    mapper, images = mapper_of(config), split.image_list()
    np.random.seed(0)  # noqa: NPY002 (detectron2's augmentations draw from it)
    for index, (record, entry) in enumerate(zip(split.images[:10], entries, strict=False)):
        theirs = mapper(entry)["image"].float()
        placement = placement_of(mapper.augmentations.drawn, (record.height, record.width))
        ours = torch.from_numpy(placement.image(images.read(index)).copy()).permute(2, 0, 1).float()
        height, width = placement.crop_size
        rows, columns = slice(2, height - 2), slice(2, width - 2)
        wrong = (ours[:, rows, columns] - theirs[:, rows, columns]).flatten()
        along = (theirs[:, rows, 3 : width - 1] - theirs[:, rows, 1 : width - 3]).flatten() / 2
        down = (theirs[:, 3 : height - 1, columns] - theirs[:, 1 : height - 3, columns]).flatten() / 2
        shift = torch.linalg.lstsq(torch.stack([along, down], 1), wrong[:, None]).solution
        assert shift.abs().max() < 0.1, (record.file_name, shift)


def rasterised(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
