"""The paper's settings, row by row, and the rules for overriding them."""

import dataclasses
import subprocess
import sys

import pytest

from pretrain.recipes import RECIPES, get_recipe
from splitmask_backbones.registry import ENCODERS

PAPER_EPOCHS = {  # PAPER section 3
    "imagenet": 300,
    "imagenet_10percent": 3_000,
    "imagenet_1percent": 30_000,
    "coco": 3_000,
    "ade20k": 21_000,
    "inat18": 800,
    "inat19": 1_400,
    "food101": 5_000,
    "cars": 5_000,
    "clipart": 5_000,
    "painting": 5_000,
    "sketch": 5_000,
}


@pytest.mark.parametrize(("name", "epochs"), PAPER_EPOCHS.items())
def test_rows_of_the_paper(name, epochs):
    recipe = get_recipe(name)
    assert recipe.epochs == epochs
    assert recipe.batch_size == 2048
    assert recipe.peak_lr == pytest.approx(1.5e-3)
    assert recipe.peak_lr * recipe.end_lr_factor == pytest.approx(1e-5)
    assert (recipe.vocab_size, recipe.img_size, recipe.decoder_depth) == (8192, 224, 2)
    assert (recipe.weight_decay, recipe.beta2, recipe.clip_grad, recipe.drop_path) == (0.05, 0.999, 3.0, 0.1)
    assert (recipe.temperature, recipe.tokenizer, recipe.warmup_fraction * 300) == (0.2, "random_projection", 10)
    tiny_set = name in ("cars", "clipart", "painting", "sketch")
    assert (recipe.mask, recipe.mask_ratio, recipe.strong_augment) == (
        ("uniform", 0.75, True) if tiny_set else ("block", 0.5, False)
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_work(name):
    assert dataclasses.replace(get_recipe(name)) == get_recipe(name)  # made anew, and checked


def test_linear_rule_and_explicit_lr():
    recipe = get_recipe("coco")
    assert recipe.override({"batch_size": 256}).peak_lr == pytest.approx(1.5e-3 / 8)
    assert recipe.override({"batch_size": 256, "lr": 0.02}).peak_lr == 0.02


def test_steps_and_epochs_replace_each_other():
    coco, tiny = get_recipe("coco"), get_recipe("tiny")
    assert coco.override({"steps": 7}).total_steps(100) == 7
    assert tiny.override({"epochs": 3}).total_steps(100) == 300
    with pytest.raises(ValueError, match="exclude each other"):
        coco.override({"steps": 7, "epochs": 3})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"mask_ratio": 0.75}, "needs --mask uniform"),
        ({"mask": "uniform", "mask_ratio": 0.4}, "--mask-ratio 0.4 must be at least 0.5 and below 1"),
        ({"mask": "uniform", "mask_ratio": 0.995}, "--mask-ratio 0.995 leaves a branch none of the 196 patches"),
        ({"mask": "uniform", "mask_ratio": 0.97, "img_size": 64}, "none of the 16 patches of --img-size 64: use 0.93"),
        ({"inpaint_weight": 0.0, "match_weight": 0.0}, "nothing to learn"),
        ({"branch_jitter": 0.4, "match_weight": 0.0}, "--branch-jitter 0.4 has no effect with --match-weight 0"),
        ({"temperature": 0.1, "match_weight": 0.0}, "--temperature 0.1 has no effect with --match-weight 0: omit it"),
        ({"vocab_size": 64, "inpaint_weight": 0.0}, "--vocab-size 64 has no effect with --inpaint-weight 0: omit it"),
        ({"kmeans_patches": 9}, "--kmeans-patches 9 has no effect with --tokenizer random_projection: omit it"),
        ({"mask_ratio": 0.75, "method": "beit"}, "--mask-ratio 0.75 has no effect with --method beit: omit it"),
        ({"batch_size": 1}, "other images in the batch"),
        ({"drop_path": 1.0}, "--drop-path 1.0 must be at least 0 and below 1"),
        ({"crop_scale": 0.0}, "--crop-scale 0.0 must be above 0 and at most 1"),
        ({"vocab_size": 1}, "--vocab-size 1 must be at least 2"),
        ({"weight_decay": 0.0, "method": "dino"}, "--end-weight-decay 0.4 would have no effect"),
        ({"epochs": None}, "neither epochs nor steps"),
        ({"lr": float("inf")}, "--lr inf: expected a number"),
        ({"steps": 2.5}, "--steps 2.5: expected an integer"),
        ({"mask": "blok"}, "unknown mask 'blok': did you mean 'block'"),
        ({"img_size": 16}, "at least 4"),
        ({"img_size": -32}, "at least 4"),
        ({"beta2": 2.0}, "--beta2 2.0 must be at least 0 and below 1"),
        ({"crop_scale": 0.5, "crop_scale_max": 0.3}, "--crop-scale 0.5 must be at most --crop-scale-max 0.3"),
        ({"crop_scale_max": 1.5}, "--crop-scale-max 1.5 must be at least 0 and at most 1"),
    ],
)
def test_values_that_cannot_work(values, match):
    with pytest.raises(ValueError, match=match):
        get_recipe("coco").override(values)


def test_without_matching_there_is_no_jitter_against_colours():
    assert get_recipe("small").branch_jitter > 0
    assert get_recipe("small").override({"match_weight": 0.0}).branch_jitter == 0


def test_recipes_do_not_import_torch():
    names = "pretrain.recipes, pretrain.training.run_folder, splitmask_backbones"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_encoder_of_ones_own_width_and_depth() -> None:
    recipe = RECIPES["tiny"][1].override({"embed_dim": 96, "depth": 6})
    assert recipe.encoder_title == "vit_tiny (96 wide, 6 blocks)"
    assert recipe.encoder_sizes == {"patch_size": 16, "embed_dim": 96, "depth": 6, "num_heads": 3}
    with pytest.raises(ValueError, match="embed_dim 100 must be a multiple of 12"):
        recipe.override({"embed_dim": 100})


def test_who_names_a_model_gets_that_one() -> None:
    demo = get_recipe("demo")
    assert demo.encoder_sizes["embed_dim"] == demo.override({"steps": 3}).encoder_sizes["embed_dim"] == 96
    assert demo.override({"model": "vit_tiny"}).encoder_sizes == ENCODERS["vit_tiny"]
    assert demo.override({"model": "vit_small", "depth": 4}).encoder_sizes == ENCODERS["vit_small"] | {"depth": 4}
