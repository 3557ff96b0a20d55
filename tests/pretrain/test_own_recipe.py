"""What the recipe `own` derives, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from pretrain import own_recipe
from pretrain.own_recipe import Facts, choose_accumulate, choose_steps, derive
from pretrain.recipes import RECIPES, get_recipe

GPU = Facts(num_images=5_000, short_side=480, device="cuda", memory=80 * 10**9)
CPU = dataclasses.replace(GPU, num_images=470, short_side=256, device="cpu", memory=16 * 10**9)


def values(facts, **given):
    return {name: value for name, (value, _) in derive(facts, given).items()}


def test_five_thousand_images_and_a_gpu():
    assert values(GPU) == {
        "model": "vit_small",
        "img_size": 224,
        "batch_size": 1024,  # 5,000 / 4 = 1,250
        "mask": "uniform",
        "mask_ratio": 0.75,
        "strong_augment": True,
        "vocab_size": 8192,  # 5,000 x 196 / 12 = 81,666
    }
    assert all(why for _, why in derive(GPU, {}).values())


def test_a_few_hundred_images_and_a_cpu_are_close_to_the_recipe_small():
    small, found = get_recipe("small"), values(CPU)
    same = ("model", "batch_size", "mask", "mask_ratio", "qk_limit", "tokenizer", "match_weight", "branch_jitter")
    for name in same:
        assert found[name] == getattr(small, name), name
    assert own_recipe.choose_base_lr(found["batch_size"])[0] == small.base_lr
    assert (found["img_size"], found["vocab_size"]) == (128, 2048)  # 470 x 64 / 12 = 2,506
    different = {name for name, value in own_recipe.SHORT.items() if value != getattr(small, name)}
    assert "qk_limit" not in values(CPU, method="dino") and "qk_limit" not in values(CPU, qk_limit=None)
    assert different == {"crop_scale"}  # small's magnify: nuclei and CamVid have things smaller than a patch


@pytest.mark.parametrize(
    ("images", "memory", "device", "model"),
    [
        (999, 80e9, "cuda", "vit_tiny"),
        (1_000, 80e9, "cuda", "vit_small"),
        (50_000, 5.9e9, "cuda", "vit_tiny"),
        (100_000, 31e9, "cuda", "vit_small"),
        (100_000, 32e9, "cuda", "vit_base"),
        (100_000, 500e9, "cpu", "vit_tiny"),
    ],
)
def test_model(images, memory, device, model):
    facts = Facts(images, 480, device, int(memory))
    assert own_recipe.choose_model(facts)[0] == model
    assert own_recipe.choose_model(dataclasses.replace(facts, init_model="vit_large"))[0] == "vit_large"


@pytest.mark.parametrize(
    ("side", "device", "crop"),
    [(20, "cuda", 64), (64, "cpu", 64), (100, "cuda", 96), (223, "cuda", 192), (224, "cuda", 224), (4000, "cuda", 224),
     (160, "cpu", 128)],
)  # fmt: skip
def test_img_size(side, device, crop):
    facts = dataclasses.replace(GPU, short_side=side, device=device)
    found, why = own_recipe.choose_img_size(facts)
    assert found == crop and f"{side} px" in why
    assert ("enlarged" in why) == (side < 64)


@pytest.mark.parametrize(
    ("images", "processes", "device", "size"),
    [(2, 1, "cpu", 2), (3, 1, "cpu", 2), (9, 1, "cuda", 2), (100, 1, "cpu", 16), (100, 3, "cuda", 15),
     (8_144, 1, "cuda", 1024), (8_192, 1, "cuda", 2048), (10**6, 8, "cuda", 2048), (10**6, 1, "cpu", 64)],
)  # fmt: skip
def test_batch_size(images, processes, device, size):
    facts = Facts(images, 480, device, 10**9, processes)
    assert own_recipe.choose_batch_size(facts)[0] == size
    assert size % processes == 0


def test_the_papers_masks_by_the_size_of_its_sets():
    for name, images in (("cars", 8_144), ("ade20k", 20_210), ("imagenet_1percent", 12_812), ("coco", 118_287)):
        found = own_recipe.choose_mask(dataclasses.replace(GPU, num_images=images))
        recipe = get_recipe(name)
        assert {key: value for key, (value, _) in found.items()} == {
            key: getattr(recipe, key) for key in ("mask", "mask_ratio", "strong_augment")
        }


@pytest.mark.parametrize(
    ("images", "patches", "tokenizer", "size"),
    [
        (502, 196, "random_projection", 8192),  # 98,392 / 12 = 8,199
        (501, 196, "random_projection", 4096),  # 98,196 / 12 = 8,183
        (502, 196, "kmeans", 2048),  # which takes a minute
        (5_000, 196, "kmeans", 8192),
        (3, 64, "random_projection", 64),
        (2, 16, "kmeans", 32),  # there are 32 patches
        (470, 196, "random_patches", 256),  # each from another image
    ],
)
def test_vocab_size(images, patches, tokenizer, size):
    assert own_recipe.choose_vocab_size(images, patches, tokenizer)[0] == size


def test_what_is_given_decides_and_counts_for_the_others():
    assert values(CPU, img_size=224, tokenizer="random_projection")["vocab_size"] == 4096  # 470 x 196 / 12 = 7,676
    assert "img_size" not in values(CPU, img_size=224)
    assert values(CPU, mask="block")["mask_ratio"] == 0.5
    many = dataclasses.replace(CPU, num_images=20_000)
    assert values(many, mask_ratio=0.75)["mask"] == "uniform"
    assert "vocab_size" not in values(CPU, tokenizer="dalle") and "tokenizer" not in values(CPU, tokenizer="dalle")
    assert "tokenizer" not in values(dataclasses.replace(CPU, num_images=63)), "too few patches for k-means"
    assert values(CPU, method="beit")["tokenizer"] == "kmeans"
    assert {"match_weight", "branch_jitter"}.isdisjoint(values(CPU, match_weight=0))  # nothing to jitter against
    assert {"match_weight", "branch_jitter"}.isdisjoint(values(CPU, inpaint_weight=0))
    assert {"tokenizer", "vocab_size"}.isdisjoint(values(CPU, inpaint_weight=0)), "nothing is predicted"
    for given in ({"match_weight": 0}, {"inpaint_weight": 0}, {"match_weight": 0.5}, {"branch_jitter": 0.0}):
        RECIPES["own"][1].override({**values(CPU, **given), **given})
    assert {"mask", "vocab_size", "strong_augment"}.isdisjoint(values(CPU, method="dino"))
    assert values(CPU, method="dino")["dino_outputs"] == 4096
    for method in ("splitmask", "beit", "dino"):
        RECIPES["own"][1].override({**values(CPU, method=method), "method": method})  # all have an effect
    with pytest.raises(ValueError, match="--recipe own: 1 image is too few"):
        derive(dataclasses.replace(CPU, num_images=1), {})


def test_micro_batches_by_hand():
    recipe = get_recipe("coco").override({"batch_size": 64})
    # 0.8 x 10 GB leave 6 GB for images of 0.2 GB: 30 of them.
    parts, why = choose_accumulate(recipe, 1, 2e9, 0.2e9, 10 * 10**9)
    assert parts == 4 and "16 images at a time" in why and "all 64 stay negatives" in why
    assert choose_accumulate(recipe, 4, 2e9, 0.2e9, 10 * 10**9)[0] == 1
    plain = recipe.override({"grad_cache": False})
    assert "matching loses negatives: 16 in place of 64" in choose_accumulate(plain, 1, 2e9, 0.2e9, 10 * 10**9)[1]
    with pytest.raises(ValueError, match=r"about 2\.2 GB for a single image, and 1\.6 GB"):
        choose_accumulate(recipe, 1, 2e9, 0.2e9, 2 * 10**9)


def test_length_by_hand():
    # 5,000 epochs of 5,000 images in batches of 1,000.
    assert choose_steps(5_000, 1_000, 0.1, 10)[0] == 25_000
    # 384,350,100 crops of 118,287 images (3,249 epochs; the paper has 3,000), batch 2048.
    assert choose_steps(118_287, 2048, 0.01, 1_000)[0] == round(384_350_100 / 2048) == 187_671
    steps, why = choose_steps(5_000, 1_000, 1.0, None)
    assert steps == 13_680 and "4 hours" in why and "25,000" in why  # 0.95 x 4 x 3,600
    assert choose_steps(5_000, 1_000, 1.0, 2.0)[0] == 6_840
    with pytest.raises(ValueError, match=r"--hours 0\.01 has room for 34 steps .* use --hours 0\.030 or more"):
        choose_steps(5_000, 1_000, 1.0, 0.01)


def test_a_batch_is_halved_for_few_hours():
    recipe = get_recipe("coco").override({"batch_size": 64})
    # 0.05 h are 171 s: 17 steps of 10 s, 34 of 5 s, 68 of 2.5 s, 136 of 1.25 s.
    assert own_recipe.choose_smaller_batch(recipe, 1, 10.0, 0.05)[0] == 8
    assert own_recipe.choose_smaller_batch(recipe, 1, 100.0, 0.05)[0] == 8  # not below
    assert own_recipe.choose_smaller_batch(recipe, 1, 2.0, 0.05)[0] == 32
    assert own_recipe.choose_smaller_batch(recipe, 1, 1.0, 0.05)[0] == 64


def test_short_and_long_runs():
    assert {name: value for name, (value, _) in own_recipe.choose_for_length(17_999).items()} == own_recipe.SHORT
    assert own_recipe.choose_for_length(1, crop_scale_max=0.1)["crop_scale"][0] == 0.1  # small crops magnify
    long = {name: value for name, (value, _) in own_recipe.choose_for_length(18_000).items()}
    assert long == {"warmup_fraction": 10 / 300, "drop_path": 0.1, "crop_scale": 0.08}
    dino = own_recipe.used(own_recipe.choose_for_length(1), {"method": "dino"})
    assert dino.keys() == {"warmup_fraction", "drop_path"}


@pytest.mark.parametrize(
    ("batch_size", "peak"),
    [
        (2, 2 / 2048 * 1.1e-2),
        (64, get_recipe("small").peak_lr),  # 1.25e-4
        (512, 512 / 2048 * 2.2e-3),  # 1.5e-3 x 4 ** 0.283
        (2048, get_recipe("coco").peak_lr),  # 1.5e-3
        (4096, 3e-3),  # the linear rule, as the paper's values have it
    ],
)
def test_lr_by_the_batch(batch_size, peak):
    base_lr, why = own_recipe.choose_base_lr(batch_size)
    assert get_recipe("own").override({"base_lr": base_lr, "batch_size": batch_size}).peak_lr == pytest.approx(peak)
    assert why
    smaller, _ = own_recipe.choose_base_lr(max(1, batch_size // 2))
    assert smaller * 0.5 < base_lr, "the rate rises with the batch"


def test_precision():
    assert own_recipe.choose_precision(True)[0] == "bf16" and own_recipe.choose_precision(False)[0] == "32"
