"""What a classifier sees: the same for the same seed whoever loads it, and timm's and torchvision's own pixels."""
# ruff: noqa: NPY002 (timm draws from the global generators)

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="the extra 'classification' is not installed")

from pretrain.training.global_generators import global_generators
from pretrain.training.loader import StepBatches, step_batches
from tests.helpers.cls_data import write_root
from tools.classification.augment import TrainAugment
from tools.classification.data import DataOptions, LabelledImages, open_data
from tools.classification.dataset import TrainingCrops
from tools.classification.recipes import get_recipe
from tools.frozen.center_crop import CenterCrop

STRONG = {"randaugment": 9.0, "force_color_jitter": True, "img_size": 32, "repeats": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    root = write_root(tmp_path_factory.mktemp("data") / "root")
    options = DataOptions(str(root))
    return open_data(options).splits["train"]


def batches(images: LabelledImages, workers: int, start: int = 0, **values: Any) -> list[dict[str, torch.Tensor]]:
    recipe = get_recipe("tiny").override({**STRONG, **values})
    data = TrainingCrops(images, recipe)
    loader = step_batches(
        data, num_items=len(data), batch_size=8, seed=recipe.seed, start_step=start, total_steps=5, workers=workers,
        repeats=recipe.repeats,
    )  # fmt: skip
    return list(loader)


def test_pixels_do_not_depend_on_workers_or_on_where_a_run_starts(images: LabelledImages) -> None:
    alone = batches(images, 0)
    for others in (batches(images, 2), batches(images, 1, start=2)):
        for mine, theirs in zip(alone[len(alone) - len(others) :], others, strict=True):
            assert torch.equal(mine["image"], theirs["image"]) and torch.equal(mine["label"], theirs["label"])
    assert not torch.equal(alone[0]["image"], batches(images, 0, seed=1)[0]["image"])


def test_the_repeats_of_an_image_are_augmented_on_their_own(images: LabelledImages) -> None:
    data = TrainingCrops(images, get_recipe("tiny").override(STRONG))
    crops = [data[0, 3, repeat]["image"] for repeat in range(3)]
    assert not any(torch.equal(crops[i], crops[j]) for i in range(3) for j in range(i))
    assert torch.equal(data[0, 3, 1]["image"], crops[1]) and not torch.equal(data[1, 3, 1]["image"], crops[1])


def test_loading_leaves_the_global_generators_alone(images: LabelledImages) -> None:
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    TrainingCrops(images, get_recipe("tiny").override(STRONG))[0, 0, 0]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    with global_generators(3):
        drawn = random.random(), np.random.random()
    with global_generators(3):
        assert (random.random(), np.random.random()) == drawn


def test_repeats_come_in_a_row_and_an_epoch_holds_its_share_of_the_images() -> None:
    """12 images, batches of 4, 3 repeats: an epoch of 3 steps shows the first 4 of the permutation."""
    order = np.random.default_rng([7, 0]).permutation(12).tolist()
    keys = list(StepBatches(12, 4, 7, 0, 6, 0, 1, 1, repeats=3))
    a, b, c, d = order[:4]
    assert keys[:3] == [
        [(0, a, 0), (0, a, 1), (0, a, 2), (0, b, 0)],
        [(0, b, 1), (0, b, 2), (0, c, 0), (0, c, 1)],
        [(0, c, 2), (0, d, 0), (0, d, 1), (0, d, 2)],
    ]
    assert {key[0] for batch in keys[3:] for key in batch} == {1}
    assert set(Counter(key[1] for batch in keys[3:] for key in batch).values()) == {3}
    assert list(StepBatches(12, 4, 7, 2, 6, 0, 1, 1, repeats=3)) == keys[2:]
    parts = [list(StepBatches(12, 4, 7, 0, 6, rank, 2, 1, repeats=3)) for rank in range(2)]
    assert [one + two for one, two in zip(*parts, strict=True)] == keys


def test_repeats_match_timms_sampler() -> None:
    """The same multiset an epoch as DeiT's RASampler (timm): its images in a row, `num_repeats` times each."""
    from timm.data.distributed_sampler import RepeatAugSampler

    sampler = RepeatAugSampler(range(12), num_replicas=1, rank=0, shuffle=False, num_repeats=3)
    theirs = Counter(Counter(sampler).values())
    mine = Counter(Counter(k[1] for batch in StepBatches(12, 4, 0, 0, 3, 0, 1, 1, repeats=3) for k in batch).values())
    assert mine == theirs == {3: 4}


@pytest.mark.parametrize("size", [(40, 48), (300, 200), (37, 91), (20, 21)])
def test_the_center_crop_is_torchvisions(size: tuple[int, int]) -> None:
    from torchvision import transforms

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(56),
            transforms.PILToTensor(),
        ]
    )
    assert torch.equal(CenterCrop(56, 0.875)(image), theirs(image))


@pytest.mark.parametrize("size", [(2, 40), (40, 2), (1, 300), (70, 900)])
def test_of_an_oblong_image_only_the_centre_is_made(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    crop, made = CenterCrop(56, 0.875), []
    resize = Image.Image.resize

    def counted(self: Image.Image, to: tuple[int, int], *more: Any, **named: Any) -> Image.Image:
        made.append(to)
        return resize(self, to, *more, **named)

    monkeypatch.setattr(Image.Image, "resize", counted)
    found = crop(image).int()
    monkeypatch.setattr("tools.frozen.center_crop.OBLONG", 10**9)
    assert (found - crop(image).int()).abs().max() <= 1
    short, whole = made[0], made[1]
    assert min(whole) == min(short) == 64 and max(short) <= 56 + 2 * 3 * 64 < max(whole) or size[0] == 70


def test_randaugment_is_timms_with_the_recipes_magnitude() -> None:
    from timm.data.auto_augment import rand_augment_transform

    recipe = get_recipe("inat19").override({"color_jitter": 0.0, "crop_scale": 1.0, "flip": 0.0, "img_size": 32})
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    augment = TrainAugment(recipe)
    rng, twin = (np.random.default_rng(3) for _ in range(2))
    mine = augment(image, rng)
    crop = augment.crop.picture(image, twin)
    theirs = rand_augment_transform(
        "rand-m7-mstd0.5-inc1",
        {"translate_const": 14, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC},
    )
    with global_generators(int(twin.integers(2**32))):
        expected = theirs(crop)
    assert np.array_equal(mine.numpy(), np.asarray(expected).transpose(2, 0, 1))
    plain = TrainAugment(recipe.override({"randaugment": 0.0}))
    assert torch.equal(plain(image, np.random.default_rng(3)), torch.from_numpy(np.array(crop).transpose(2, 0, 1)))


def test_colour_jitter_changes_colours_only(tmp_path: Path) -> None:
    values = {"randaugment": 0.0, "crop_scale": 1.0, "flip": 0.0, "img_size": 8}
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    jittered = TrainAugment(get_recipe("tiny").override({**values, "color_jitter": 0.4}))(
        grey, np.random.default_rng(0)
    )
    level = int(jittered[0, 0, 0])
    assert 60 <= level <= 140 and level != 100 and bool((jittered == level).all())


@pytest.mark.parametrize("randaugment", [0.0, 9.0])
@pytest.mark.parametrize("forced", [False, True])
def test_colours_are_jittered_where_timm_jitters_them(randaugment: float, forced: bool) -> None:
    """By default not on top of RandAugment: timm's own choice of transforms, from the same options."""
    from timm.data.transforms_factory import transforms_imagenet_train
    from torchvision.transforms import ColorJitter

    values = {"randaugment": randaugment, "force_color_jitter": forced, "crop_scale": 1.0, "flip": 0.0, "img_size": 32}
    recipe = get_recipe("inat19").override(values)
    theirs = transforms_imagenet_train(
        32, color_jitter=recipe.color_jitter, force_color_jitter=forced,
        auto_augment=f"rand-m{randaugment:g}-mstd0.5-inc1" if randaugment else None,
    )  # fmt: skip
    jitters = any(isinstance(transform, ColorJitter) for transform in theirs.transforms)
    assert jitters == (randaugment == 0 or forced)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with_, without = (
        TrainAugment(recipe.override({"color_jitter": strength}))(image, np.random.default_rng(3))
        for strength in (0.4, 0.0)
    )
    assert torch.equal(with_, without) != jitters
