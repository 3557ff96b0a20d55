"""From a recipe to its views and its method: what each method is fed, and what the loop asks of all of them."""

import pytest
import torch
from torch.utils.data import default_collate

from pretrain.data.sources import open_source
from pretrain.methods.base import METRICS, Method
from pretrain.methods.build import build_encoder, build_method, build_views
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
