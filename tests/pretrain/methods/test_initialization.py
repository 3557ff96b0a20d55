"""How encoders begin: BEiT's rescaled matrices, block by block."""

import math

import torch

from pretrain.methods.build import build_encoder
from pretrain.recipes import get_recipe


def test_beit_begins_with_rescaled_residual_branches_and_the_others_do_not():
    """Every number by hand: block l (from 1) has its last two matrices divided by the root of 2 l, nothing else."""
    recipe = get_recipe("tiny")
    plain = build_encoder(recipe).state_dict()
    found = build_encoder(recipe.override({"method": "beit"})).state_dict()
    assert plain.keys() == found.keys()
    for name, value in plain.items():
        factor = 1.0
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            factor = 1 / math.sqrt(2 * (int(name.split(".")[1]) + 1))
        torch.testing.assert_close(found[name], value * factor, rtol=1e-6, atol=0)
    assert (plain["blocks.11.mlp.fc2.weight"].std() / found["blocks.11.mlp.fc2.weight"].std()).item() > 4.89
    off = build_encoder(recipe.override({"method": "beit", "rescale_residuals": False})).state_dict()
    on = build_encoder(recipe.override({"rescale_residuals": True})).state_dict()
    assert all(torch.equal(off[name], plain[name]) and torch.equal(on[name], found[name]) for name in plain)
