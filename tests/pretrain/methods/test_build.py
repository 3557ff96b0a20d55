"""From a recipe to its views and its method: what each method is fed, and what the loop asks of all of them."""

import pytest
import torch
from torch.utils.data import default_collate

from pretrain.data.sources import open_source
from pretrain.methods.base import METRICS, Method
from pretrain.methods.build import build_encoder, build_method, build_optimizer, build_views
from pretrain.recipes import get_recipe
from tests.helpers.methods import METHODS


@pytest.mark.parametrize("name", ["splitmask", *METHODS])
def test_every_method_takes_a_step_as_the_loop_takes_it(name, image_folder, tmp_path):
    recipe = get_recipe("tiny").override({"method": name})
    views = build_views(recipe, open_source(image_folder), 16)
    method = build_method(recipe, views, tmp_path, 0, total_steps=4, steps_per_epoch=1)
    assert isinstance(method, Method) and method.metric_names[: len(METRICS)] == METRICS
    batch = default_collate([views[(0, index, 0)] for index in range(4)])
    before = {key: value.clone() for key, value in method.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    optimizer.register_step_pre_hook(lambda *_: method.before_step())
    values = method.train()(batch)
    assert set(values) <= set(method.metric_names) and values["loss"].ndim == 0
    values["loss"].backward()
    optimizer.step()
    method.after_step(1)
    assert any(not torch.equal(value, before[key]) for key, value in method.encoder.state_dict().items())
    state = {key: value.clone() for key, value in method.state_dict().items()}
    assert {"targets", "predictions"} <= set(method.eval().observe(batch))
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())


def test_the_same_seed_gives_the_same_encoder():
    recipe = get_recipe("tiny")
    one, two, other = (build_encoder(recipe.override({"seed": seed})).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def built(image_folder, tmp_path, **values):
    recipe = get_recipe("tiny").override(values)
    views = build_views(recipe, open_source(image_folder), 16)
    return recipe, views, build_method(recipe, views, tmp_path, 0, total_steps=20, steps_per_epoch=5)


def test_the_recipes_values_reach_the_optimizer(image_folder, tmp_path):
    recipe, _, method = built(image_folder, tmp_path, lr=0.02, weight_decay=0.3, beta2=0.9)
    optimizer = build_optimizer(method, recipe, torch.device("cpu"))
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(0.02, (0.9, 0.9))}
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    bare = {name for name, p in method.named_parameters() if p.ndim == 1 or name.endswith("pos_embed")}
    assert decays == {name: 0.0 if name in bare else 0.3 for name, _ in method.named_parameters()}


def test_the_recipes_values_reach_splitmask(image_folder, tmp_path):
    """Each is another than its default and than the others: none is forgotten or in another's place."""
    values = {"decoder_depth": 3, "inpaint_weight": 0.7, "match_weight": 0.3, "temperature": 0.9, "branch_jitter": 0.25}
    _, _, method = built(image_folder, tmp_path, **values, drop_path=0.2, patch_norm="channel_mean", vocab_size=32)
    found = {name: getattr(method, name) for name in list(values)[1:]}
    assert found | {"decoder_depth": len(method.decoder.blocks)} == values
    assert method.encoder.config["drop_path_rate"] == 0.2 == method.encoder.blocks[-1].drop_path.rate
    assert (method.tokenizer.patch_norm, method.head.out_features) == ("channel_mean", 32)


def test_the_recipes_values_reach_dino(image_folder, tmp_path):
    pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    teacher = {"teacher_momentum": 0.9, "teacher_temperature": 0.07, "teacher_warmup": 0.4}
    values = {"method": "dino", "dino_outputs": 32, "local_crops": 3, "crop_scale": 0.3, "drop_path": 0.2, **teacher}
    _, views, method = built(image_folder, tmp_path, **values)
    assert (method.momentum, method.temperature, method.warm_steps) == (0.9, 0.07, 8)
    assert (method.total_steps, method.frozen_steps, method.loss.center.numel()) == (20, 5, 32)
    config = method.trained_encoder.config
    assert (config["drop_path_rate"], config["position_resize"], config["use_class_token"]) == (0.2, "plain", True)
    assert (views.make.num_local, views.make.large.scale, views.make.small.scale) == (3, (0.3, 1.0), (0.05, 0.3))


def test_the_recipes_values_reach_the_views(image_folder):
    """Colours and all: what a branch sees, and from which part of the image."""
    values = {"mask": "uniform", "mask_ratio": 0.75, "crop_scale": 0.1, "crop_scale_max": 0.3, "strong_augment": True}
    views = build_views(get_recipe("tiny").override(values), open_source(image_folder), 16)
    item, augment = views[(0, 0, 0)], views.make.augment
    assert len(item["ids_a"]) == len(item["ids_b"]) == 4  # of 16
    assert (augment.img_size, augment.scale, augment.strong) == (64, (0.1, 0.3), True)
