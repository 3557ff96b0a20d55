"""How encoders begin: BEiT's rescaled matrices, block by block, and learned positions that start as waves."""

import math

import pytest
import torch

from pretrain.methods.build import build_encoder
from pretrain.methods.initialization import begin_with_sincos
from pretrain.recipes import RECIPES, get_recipe
from splitmask_backbones import VisionTransformer


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


@pytest.mark.parametrize("method", ["splitmask", "beit", "dino"])
def test_learned_positions_begin_as_waves_on_demand(method):
    recipe = get_recipe("tiny").override({"method": method})
    normal, found = (build_encoder(recipe.override({"position_init": kind})) for kind in ("normal", "sincos"))
    assert torch.equal(build_encoder(recipe).pos_embed, normal.pos_embed)
    assert normal.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    first = int(method == "dino")  # the class token has no place
    assert torch.equal(found.pos_embed[:, :first], normal.pos_embed[:, :first])
    assert found.pos_embed.requires_grad and found.config == normal.config
    frequencies = [10000 ** (-k / 48) for k in range(48)]
    for y, x in ((0, 0), (1, 3), (3, 2)):
        expected = [wave(n * w) for n in (x, y) for wave in (math.sin, math.cos) for w in frequencies]
        torch.testing.assert_close(found.pos_embed[0, first + 4 * y + x].tolist(), expected, rtol=0, atol=1e-6)
    others = {name: value for name, value in normal.state_dict().items() if name != "pos_embed"}
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in others.items())


def test_positions_begin_as_the_paper_family_has_them():
    """No recipe changes that yet; and where there is no learned table, nothing can begin."""
    assert {recipe.position_init for _, recipe in RECIPES.values()} == {"normal"}
    encoder = VisionTransformer(img_size=32, embed_dim=24, depth=1, num_heads=2, positions="sincos")
    with pytest.raises(ValueError, match="'sincos' are not learned"):
        begin_with_sincos(encoder)
