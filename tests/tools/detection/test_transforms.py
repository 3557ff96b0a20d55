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
from tools.detection.coco import read_coco
from tools.detection.dataset import TrainingImages
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


def test_points_and_boxes_lie_where_the_pixels_are() -> None:
    """A white rectangle on black: its box, placed, encloses the placed picture's bright part to half a pixel."""
    picture = np.zeros((90, 120, 3), np.uint8)
    picture[20:50, 30:80] = 255
    place = training_placement(LSJ)
    flips = set()
    for seed in range(40):
        placement = place((90, 120), np.random.default_rng(seed))
        flips.add(placement.flip)
        box = placement.box((30, 20, 80, 50))
        corners = placement.points(np.array([[30, 20], [80, 50]]))
        assert sorted(corners[:, 0]) == [box[0], box[2]] and sorted(corners[:, 1]) == [box[1], box[3]]
        bright = placement.image(Image.fromarray(picture))[..., 0].astype(float)
        bright[placement.crop_size[0] :] = bright[:, placement.crop_size[1] :] = 0
        inside = np.clip(box, 0, (placement.crop_size[1], placement.crop_size[0]) * 2)
        expected = (inside[2] - inside[0]).clip(0) * (inside[3] - inside[1]).clip(0)
        assert bright.sum() / 255 == pytest.approx(expected, rel=0.03, abs=2), seed
        x1, y1, x2, y2 = placement.source_window()
        window = np.zeros((90, 120), np.uint8)
        window[y1:y2, x1:x2] = 1
        assert placement.mask(window).sum() == np.prod(placement.crop_size)
        assert (x2 - x1 - 2) * placement.scaled_size[1] / 120 < placement.crop_size[1]
        rows, cols = np.flatnonzero(bright.max(axis=1) > 127), np.flatnonzero(bright.max(axis=0) > 127)
        if rows.size and cols.size:
            seen = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
            assert np.abs(seen - inside).max() <= 1, seed
    assert flips == {True, False}


def test_sizes_of_multi_scale_and_evaluation() -> None:
    recipe = DetRecipe()
    assert fit((480, 640), 800, 1333) == (800, 1067)
    assert fit((300, 900), 800, 1333) == (444, 1333)
    assert fit((400, 501), 200, 400) == (200, 251)  # 250.5, as detectron2 rounds
    assert evaluation_placement(recipe, (480, 640)).output_size == (800, 1067)
    assert evaluation_placement(recipe, (300, 900)).output_size == (444, 1333)
    assert evaluation_placement(LSJ, (480, 640)).output_size == (48, 64)
    short = [training_placement(recipe)((500, 600), np.random.default_rng(i)).output_size[0] for i in range(200)]
    assert min(short) >= 480 and max(short) <= 800 and min(short) < 500 and max(short) > 780


def first_sizes(size: tuple[int, int], placement: Placement) -> list[tuple[tuple[int, int], list[float]]]:
    """Returns the sizes of 400, 500, 600 pixels from which the crop can have been cut, with its place and sides."""
    found = []
    for short in (400, 500, 600):
        first = fit(size, short, 1333)
        factors = [f / s for f, s in zip(first, placement.scaled_size, strict=True)]
        sides = [*placement.offset, *placement.crop_size]
        place = [side * factors[i % 2] for i, side in enumerate(sides)]
        if all(abs(value - round(value)) < 1e-6 for value in place):
            found.append((first, place))
    return found


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (300, 900), (50, 40)])
def test_resize_crop_resize_is_xcits(size: tuple[int, int]) -> None:
    """Short side 400, 500 or 600; a crop of 384-600 pixels a side, as far as there are; short side 480-800."""
    place = training_placement(DetRecipe(crop=1.0))
    for seed in range(60):
        placement = place(size, np.random.default_rng(seed))
        ((first, (top, left, height, width)), *_) = first_sizes(size, placement)
        assert min(first[0], 384) - 1e-6 <= height <= min(first[0], 600) + 1e-6
        assert min(first[1], 384) - 1e-6 <= width <= min(first[1], 600) + 1e-6
        assert 0 <= top <= first[0] - height + 1e-6 and 0 <= left <= first[1] - width + 1e-6
        assert placement.output_size == placement.crop_size
        assert 480 <= min(placement.output_size) <= 800 and max(placement.output_size) <= 1333


def test_resize_crop_resize_in_one_step_puts_pixels_and_masks_where_three_steps_do() -> None:
    rows, cols = np.mgrid[:240, :320]
    picture = np.stack([rows, cols * 0.7, (rows + cols) * 0.4], axis=2).astype(np.uint8)  # smooth: no blur shows
    disc = ((rows - 120) ** 2 + (cols - 150) ** 2 < 70**2).astype(np.uint8)
    place = training_placement(DetRecipe(crop=1.0))
    for seed in range(8):
        placement = place((240, 320), np.random.default_rng(seed))
        ((first, numbers), *_) = first_sizes((240, 320), placement)
        top, left, height, width = (round(number) for number in numbers)
        box = (left, top, left + width, top + height)

        def three_steps(pixels: np.ndarray, first=first, box=box, placement=placement) -> np.ndarray:
            image = Image.fromarray(pixels).resize(first[::-1], Image.Resampling.BILINEAR).crop(box)
            moved = np.asarray(image.resize(placement.output_size[::-1], Image.Resampling.BILINEAR))
            return moved[:, ::-1] if placement.flip else moved

        found = placement.image(Image.fromarray(picture)).astype(int)
        assert np.abs(found - three_steps(picture)).max() <= 2
        differs = (placement.mask(disc) != (three_steps(disc * 255) > 127)).mean()
        assert differs < 0.005


def test_as_many_images_are_cropped_as_the_recipe_says_and_none_by_default() -> None:
    def cropped(recipe: DetRecipe) -> float:
        place = training_placement(recipe)
        placed = [place((480, 640), np.random.default_rng(seed)) for seed in range(400)]
        return sum(placement.scaled_size != placement.output_size for placement in placed) / 400

    assert cropped(DetRecipe()) == 0
    assert cropped(DetRecipe(crop=0.5)) == pytest.approx(0.5, abs=0.08)


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    split = read_coco(root / "annotations" / "instances_train.json", root / "train")
    data = TrainingImages(split, LSJ)
    image, target = data[(1, 2, 0)]
    again, target_again = TrainingImages(split, LSJ)[(1, 2, 5)]
    assert torch.equal(image, again) and torch.equal(target.masks, target_again.masks)
    assert not torch.equal(image, data[(2, 2, 0)][0])
    other = TrainingImages(split, dataclasses.replace(LSJ, seed=1))
    assert not torch.equal(image, other[(1, 2, 0)][0])
