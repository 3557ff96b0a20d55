"""Every parameter in the right layer and decay group (CONTRACT: layer-wise lr)."""

import pytest
import torch
from torch import nn

from splitmask_backbones import VisionTransformer, build_pyramid
from splitmask_backbones.param_groups import layer_of, param_groups
from tests.helpers.groups import expected_decay, expected_layer


class Model(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.encoder = VisionTransformer(embed_dim=32, depth=3, num_heads=2, img_size=64, **kwargs)
        self.pyramid = build_pyramid("simple", self.encoder, 8)


def by_name(groups):
    table = {}
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert name not in table
            table[name] = (group["lr"], group["weight_decay"], parameter)
    return table


def test_golden_groups():
    model = Model(use_class_token=True, num_registers=1)
    table = by_name(param_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5))
    assert {name: id(p) for name, (_, _, p) in table.items()} == {n: id(p) for n, p in model.named_parameters()}
    expected = {
        "encoder.cls_token": (0.5**4, 0.0),
        "encoder.reg_token": (0.5**4, 0.0),
        "encoder.pos_embed": (0.5**4, 0.0),
        "encoder.patch_embed.proj.weight": (0.5**4, 0.05),
        "encoder.patch_embed.proj.bias": (0.5**4, 0.0),
        "encoder.blocks.0.attn.qkv.weight": (0.5**3, 0.05),
        "encoder.blocks.2.mlp.fc2.weight": (0.5**1, 0.05),
        "encoder.blocks.2.norm1.weight": (0.5**1, 0.0),
        "encoder.norm.weight": (1.0, 0.0),
        "pyramid.levels.0.lateral.weight": (1.0, 0.05),
        "pyramid.levels.0.lateral_norm.weight": (1.0, 0.0),
    }
    for name, (lr, decay) in expected.items():
        assert table[name][:2] == (lr, decay), name


def test_relative_tables_do_not_decay():
    table = by_name(param_groups(Model(use_rel_pos=True), 1.0, 0.05, 0.5))
    assert table["encoder.blocks.1.attn.rel_pos_h"][:2] == (0.5**2, 0.0)


def test_encoder_alone_and_wrapped():
    encoder = Model().encoder
    assert set(by_name(param_groups(encoder, 1.0, 0.1))) == {n for n, _ in encoder.named_parameters()}
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"backbone": Model()})})
    assert by_name(param_groups(wrapped, 1.0, 0.1, 0.5))["module.backbone.encoder.blocks.0.norm1.bias"][0] == 0.5**3


def test_frozen_parameters_are_left_out():
    model = Model()
    model.encoder.patch_embed.requires_grad_(False)
    names = by_name(param_groups(model, 1.0, 0.1))
    assert not any("patch_embed" in name for name in names)


@pytest.mark.parametrize(
    ("kwargs", "without_decay"),
    [
        ({"use_class_token": True, "num_registers": 1}, ["pos_embed", "cls_token", "reg_token"]),
        ({"use_rel_pos": True}, ["pos_embed", "blocks.1.attn.rel_pos_h", "blocks.2.attn.rel_pos_w"]),
        ({"relative_position_bias": "shared", "use_class_token": True}, ["relative_position_bias_table"]),
        ({"relative_position_bias": "per_block"}, ["blocks.0.attn.relative_position_bias_table"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_optimizer_takes_the_groups(kwargs, without_decay):
    """AdamW's first step is `p * (1 - lr * decay) - lr * sign(gradient)`, so it shows each parameter's lr and decay."""
    torch.manual_seed(0)
    model, depth, lr, decay = Model(**kwargs).double(), 3, 1e-3, 0.05
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.AdamW(param_groups(model, lr, decay, 0.65), eps=1e-30)
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    for name, layer in {
        "encoder.patch_embed.proj.weight": 0,
        "encoder.blocks.0.mlp.fc1.weight": 1,
        "encoder.blocks.2.attn.qkv.weight": 3,
        "pyramid.levels.3.output.weight": 4,
    }.items():
        assert groups[name]["lr"] == pytest.approx(lr * 0.65 ** (4 - layer))
        assert groups[name]["weight_decay"] == decay, name
    for name in (*without_decay, "norm.weight", "blocks.0.norm1.bias", "blocks.1.mlp.fc1.bias"):
        assert groups[f"encoder.{name}"]["weight_decay"] == 0, name

    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    maps = model.pyramid(model.encoder.forward_maps(images), image_size=(64, 64))
    loss = sum((out * torch.randn_like(out)).sum() for out in (model.encoder(images), *maps))
    loss.backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    assert groups.keys() == before.keys()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        moving = parameter.grad.abs() > 1e-10  # keys have no use for their bias: softmax does not see it
        assert moving.double().mean() > 0.6, name
        own_lr = lr * 0.65 ** (depth + 1 - expected_layer(name, depth))
        kept = before[name] * (1 - own_lr * decay * expected_decay(name, parameter.ndim))
        expected = kept - own_lr * parameter.grad.sign()
        torch.testing.assert_close(parameter[moving], expected[moving], rtol=0, atol=1e-9 * own_lr, msg=name)


def test_errors():
    with pytest.raises(ValueError, match="expected one"):
        param_groups(nn.ModuleList([Model(), Model()]), 1.0, 0.1)
    with pytest.raises(ValueError, match="needs a VisionTransformer"):
        param_groups(nn.Linear(2, 2), 1.0, 0.1, 0.5)
    with pytest.raises(ValueError, match="'surprise.weight' belongs to no layer"):
        layer_of("surprise.weight", 3)
    model = Model()
    model.encoder.surprise = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"surprise.weight"):
        param_groups(model, 1.0, 0.1, 0.5)
