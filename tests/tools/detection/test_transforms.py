"""Placements: pixels, masks and boxes go to the same place; the same generator gives the same sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from det_configs.common.recipe import DetRecipe
from tests.helpers.det_data import write_root
from tools.detection.coco import ImageRecord, Instance, read_coco
from tools.detection.dataset import TrainingImages, make_target
from tools.detection.transforms import PAD_COLOUR, Placement, evaluation_placement, fit, training_placement

LSJ = DetRecipe(img_size=64, augment="lsj", scale_range=(0.3, 2.0))
SIZES = [(48, 64), (200, 31), (64, 64), (1, 1), (3, 500)]


@pytest.mark.parametrize("size", SIZES)
def test_jitter_fills_the_square_from_the_top_left(size: tuple[int, int]) -> None:
    white = Image.new("RGB", (size[1], size[0]), "white")
    place = training_placement(LSJ)
    for seed in range(30):
        placement = place(size, np.random.default_rng(seed))
        pixels = placement.image(white)
        inside = (pixels == 255).all(axis=-1)
        assert pixels.shape == (64, 64, 3)
        assert inside[: placement.crop_size[0], : placement.crop_size[1]].all()
        assert inside.sum() == placement.crop_size[0] * placement.crop_size[1]
        assert (pixels[~inside] == PAD_COLOUR).all()
        assert np.array_equal(placement.mask(np.ones(size, np.uint8)).astype(bool), inside)


def test_masks_lie_where_the_pixels_are() -> None:
    """A white disc on black: its mask, placed, must be the placed picture cut at half (up to its antialiased rim)."""
    rows, cols = np.mgrid[:90, :120]
    disc = ((rows - 40) ** 2 + (cols - 70) ** 2 < 30**2).astype(np.uint8)
    picture = Image.fromarray(disc * 255).convert("RGB")
    place = training_placement(LSJ)
    flips = set()
    for seed in range(40):
        placement = place((90, 120), np.random.default_rng(seed))
        flips.add(placement.flip)
        valid = placement.mask(np.ones((90, 120), np.uint8)).astype(bool)
        expected = (placement.image(picture)[..., 0] > 127) & valid
        differs = (placement.mask(disc).astype(bool) != expected).sum()
        assert differs <= 0.02 * valid.sum() + 4, seed
    assert flips == {True, False}


def test_boxes_are_tight_around_the_placed_masks_and_crowds_stay_out() -> None:
    square = [[10.0, 10, 30, 10, 30, 20, 10, 20]]
    instances = [
        Instance((10, 10, 30, 20), 1, square, 200, crowd=False),
        Instance((10, 10, 30, 20), 0, square, 200, crowd=True),
        Instance((50, 40, 60, 44), 0, [[50.0, 40, 60, 40, 60, 44, 50, 44]], 40, crowd=False),
    ]
    record = ImageRecord(1, "x.png", 48, 64, instances)
    doubled = Placement((48, 64), (96, 128), (10, 10), (64, 64), (64, 64), flip=False)
    target = make_target(record, doubled)
    assert target["boxes"].tolist() == [[10, 10, 50, 30]]  # twice the box, minus the crop's corner; the last is cut off
    assert target["labels"].tolist() == [2]
    assert target["masks"].shape == (1, 64, 64) and int(target["masks"].sum()) == 40 * 20
    flipped = make_target(record, dataclasses.replace(doubled, flip=True))
    assert flipped["boxes"].tolist() == [[14, 10, 54, 30]]
    empty = make_target(ImageRecord(1, "x.png", 48, 64, instances[1:2]), doubled)
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 64, 64)


def test_sizes_of_multi_scale_and_evaluation() -> None:
    recipe = DetRecipe()
    assert fit((480, 640), 800, 1333) == (800, 1067)
    assert fit((300, 900), 800, 1333) == (444, 1333)
    assert evaluation_placement(recipe, (480, 640)).output_size == (800, 1067)
    assert evaluation_placement(recipe, (300, 900)).output_size == (444, 1333)
    assert evaluation_placement(LSJ, (480, 640)).output_size == (48, 64)
    short = [training_placement(recipe)((500, 600), np.random.default_rng(i)).output_size[0] for i in range(200)]
    assert min(short) >= 480 and max(short) <= 800 and min(short) < 500 and max(short) > 780


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    split = read_coco(root / "annotations" / "instances_train.json", root / "train")
    data = TrainingImages(split, LSJ)
    image, target = data[(1, 2, 0)]
    again, target_again = TrainingImages(split, LSJ)[(1, 2, 5)]
    assert torch.equal(image, again) and torch.equal(target["masks"], target_again["masks"])
    assert not torch.equal(image, data[(2, 2, 0)][0])
    other = TrainingImages(split, dataclasses.replace(LSJ, seed=1))
    assert not torch.equal(image, other[(1, 2, 0)][0])
