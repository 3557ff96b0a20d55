"""Recipes and the command line's values: checked, typed, with the nearest right name."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from det_configs.common.recipe import FIELDS, DetRecipe, parse_value
from det_configs.common.tiny import TINY
from splitmask_backbones import create_encoder, save_encoder
from splitmask_backbones.adapters import resolve_encoder
from tools import cli
from tools.detection.config import CONFIG_DIR, OPTIONS, given_values, load_config


@pytest.mark.parametrize(
    "path", sorted(p for p in CONFIG_DIR.glob("*.py") if p.stem != "__init__"), ids=lambda p: p.stem
)
def test_every_config_loads_and_survives_json(path: Path) -> None:
    recipe = load_config(str(path))
    assert recipe == load_config(path.stem)
    assert DetRecipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_the_published_protocol() -> None:
    recipe = load_config("coco_3x_vit_small_splitmask_coco")
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (1e-4, 0.05, 16, 36)
    assert [round(36 * share) for share in recipe.milestones] == [27, 33]
    assert [round(recipe.img_size * factor) for factor in recipe.scale_range] == [480, 800]
    assert round(recipe.img_size * recipe.max_long_side) == 1333
    assert (recipe.pyramid, recipe.positions) == ("tapped", "sincos")


def test_what_the_paper_leaves_open_is_xcits() -> None:
    """detection/configs/xcit/mask_rcnn_xcit_small_12_p16_3x_coco.py of its code; ViT-B has no counterpart there."""
    small, base = (load_config(f"coco_3x_vit_{size}_splitmask_coco") for size in ("small", "base"))
    for recipe in (small, base):
        assert (recipe.pyramid_norm, recipe.crop) == ("SyncBN", 0.5)
        assert [round(recipe.img_size * factor) for factor in recipe.crop_scales] == [400, 500, 600]
        assert [round(recipe.img_size * factor) for factor in recipe.crop_range] == [384, 600]
    assert (small.drop_path, base.drop_path) == (0.05, 0.1)
    assert dataclasses.replace(base, encoder="vit_small", drop_path=0.05) == small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"lr": float("nan")}, "expected a number"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"batch_size": 2.5}, "expected an integer"),
        ({"flip": 1.5}, "at most 1"),
        ({"grad_checkpointing": 1}, "expected true or false"),
        ({"encoder": "vit_huge"}, "unknown encoder 'vit_huge'"),
        ({"anchor_sizes": (8, 16)}, "5 sizes"),
        ({"scale_range": (2.0, 1.0)}, "smaller one first"),
        ({"crop_range": (0.5,)}, "crop_range .* smaller one first"),
        ({"crop_scales": ()}, "at least one factor"),
        ({"crop": 0.5, "augment": "lsj"}, "crop=0.5 needs augment=multiscale"),
        ({"square_pad": True}, "square_pad=true needs augment=lsj"),
        ({"milestones": (0.9, 0.5)}, "must increase"),
        ({"steps": 5}, "exclude each other"),
        ({"batch_size": 6, "accumulate": 4}, "multiple of accumulate"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DetRecipe(), **change)


def test_steps_and_epochs_replace_each_other() -> None:
    recipe = DetRecipe().override({"steps": 7})
    assert (recipe.steps, recipe.epochs, recipe.total_steps(100)) == (7, None, 7)
    assert recipe.override({"epochs": 2}).total_steps(100) == 200
    with pytest.raises(ValueError, match="exclude each other"):
        recipe.override({"epochs": 2, "steps": 3})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lr", "1e-3", 1e-3),
        ("positions", "none", "none"),
        ("encoder", "none", None),
        ("positions", "fourier", "fourier"),
        ("clip_grad", "none", None),
        ("grad_checkpointing", "yes", True),
        ("anchor_sizes", "8,16,32,64,128", (8, 16, 32, 64, 128)),
        ("scale_range", "(0.5, 2)", (0.5, 2.0)),
        ("encoder", "vit_base", "vit_base"),
    ],
)
def test_words_become_values(name: str, text: str, expected: Any) -> None:
    assert parse_value(name, text) == expected


def test_wrong_words_are_errors() -> None:
    with pytest.raises(ValueError, match="did you mean 'rois_per_image'"):
        parse_value("roi_per_image", "5")
    with pytest.raises(ValueError, match="batch_size=many: expected an integer"):
        parse_value("batch_size", "many")
    with pytest.raises(ValueError, match="expected integers with commas"):
        parse_value("anchor_sizes", "8;16")


def test_overrides_mix_with_options_and_options_win() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--data")
    parser.add_argument("--resume", action="store_true")
    words, overrides = cli.take_overrides(parser, ["c.py", "lr=0.1", "--data", "a=b", "--resume", "flip=0", "--x=1"])
    assert (words, overrides) == (["c.py", "--data", "a=b", "--resume", "--x=1"], ["lr=0.1", "flip=0"])
    args = argparse.Namespace(**dict.fromkeys(OPTIONS))
    args.lr = 0.5
    assert given_values(vars(args), overrides) == {"lr": 0.5, "flip": 0.0}
    args.steps = 3
    assert given_values(vars(args), ["epochs=9"]) == {"lr": 0.5, "steps": 3}
    with pytest.raises(ValueError, match="given twice"):
        given_values(vars(args), ["flip=0", "flip=1"])
    assert set(OPTIONS) <= set(FIELDS)


def test_lr_follows_the_batch_and_nothing_else() -> None:
    recipe = DetRecipe(lr=1e-4, batch_size=16)
    assert recipe.override({"batch_size": 4}).lr == pytest.approx(2.5e-5)
    assert recipe.override({"batch_size": 4, "lr": 3e-4}).lr == 3e-4
    assert recipe.override({"accumulate": 4}).lr == 1e-4


def test_lr_factor_is_the_published_schedule() -> None:
    recipe = DetRecipe(warmup_fraction=0.01)
    factors = [recipe.lr_factor(step, 3600) for step in range(3600)]
    assert factors[0] == pytest.approx(1 / 36) and factors[35] == 1.0
    drops = [step for step in range(1, 3600) if factors[step] < factors[step - 1]]
    assert drops == [2700, 3300] and factors[-1] == pytest.approx(0.01)  # epochs 27 and 33 of 36


def test_a_cosine_ends_where_it_is_told() -> None:
    recipe = DetRecipe(schedule="cosine", end_lr_factor=0.1, warmup_fraction=0.0)
    factors = [recipe.lr_factor(step, 100) for step in (0, 50, 100)]
    assert factors == pytest.approx([1.0, 0.55, 0.1])


def test_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.detection import engines

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert engines.choose_engine("auto", DetRecipe()) == "torchvision"
    with pytest.raises(ValueError, match=r"--engine detectron2: detectron2 is not installed"):
        engines.choose_engine("detectron2", DetRecipe())
    with pytest.raises(ValueError, match="cascade=true needs --engine detectron2"):
        engines.choose_engine("auto", DetRecipe(cascade=True))
    monkeypatch.setattr(engines, "find_spec", lambda name: name)
    assert engines.choose_engine("auto", DetRecipe(cascade=True)) == "detectron2"
    assert engines.choose_engine("torchvision", DetRecipe()) == "torchvision"


def test_config_files_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from det_configs.common.recipe import DetRecipe\nrecipe = DetRecipe(seed=3)\n")
    assert load_config(str(path)).seed == 3
    for text, message in (
        ("x = 1\n", "defines no `recipe`"),
        ("def (\n", "SyntaxError"),
        ("from det_configs.common.recipe import DetRecipe\nrecipe = DetRecipe(sead=3)\n", "did you mean 'seed'"),
        ("from det_configs.common.recipe import DetRecipe\nrecipe = DetRecipe(lr=-3)\n", "must be above 0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(str(path))
    with pytest.raises(ValueError, match="did you mean 'det_configs/nuclei_tiny.py'"):
        load_config("det_configs/nuclei_tinny.py")


def test_an_encoder_of_ones_own_width_and_depth(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, embed_dim=96, depth=6, img_size=64)
    assert TINY.encoder_arguments().keys().isdisjoint({"embed_dim", "depth"})
    encoder = resolve_encoder(recipe.encoder, **recipe.encoder_arguments())
    assert (encoder.embed_dim, encoder.depth, encoder.blocks[0].attn.num_heads) == (96, 6, 3)

    # Both its own file and one of the named encoder fit the same config; another one's does not.
    sizes = {"img_size": 64, "embed_dim": 96, "depth": 6}
    for name, given in (("own", sizes), ("named", {"img_size": 64}), ("other", sizes | {"depth": 5})):
        save_encoder(create_encoder("vit_tiny", **given), tmp_path / name)
    for name, depth in (("own", 6), ("named", 12)):
        encoder = resolve_encoder(recipe.encoder, tmp_path / name, **recipe.encoder_arguments())
        assert (encoder.depth, encoder.out_indices) == (depth, (depth - 1,))
    with pytest.raises(ValueError, match=r"depth 5.*\(encoder=vit_tiny, embed_dim=96, depth=5\)"):
        resolve_encoder(recipe.encoder, tmp_path / "other", **recipe.encoder_arguments())
    # Without a name it is the file's, whatever sizes the config has.
    unnamed = dataclasses.replace(recipe, encoder=None)
    assert resolve_encoder(unnamed.encoder, tmp_path / "other", **unnamed.encoder_arguments()).depth == 5


def test_a_file_whose_maps_are_normed_stays_as_it_is(tmp_path: Path) -> None:
    """The adapters take the final norm away where maps do not use it; here the file says that they do."""
    torch.manual_seed(0)
    saved = create_encoder("vit_tiny", embed_dim=24, depth=4, norm_maps=True).eval()
    save_encoder(saved, tmp_path / "e.safetensors")
    loaded = resolve_encoder(None, tmp_path / "e.safetensors").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.forward_maps(images)[-1], saved.forward_maps(images)[-1])
