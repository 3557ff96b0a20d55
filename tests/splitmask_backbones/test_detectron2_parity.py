"""Our encoder and simple pyramid against detectron2's own ViT, maps and gradients."""

import pytest
import torch

from splitmask_backbones import VisionTransformer, build_pyramid

pytestmark = pytest.mark.detectron2


def theirs_and_ours(use_rel_pos, window_size, grid=8):
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT

    torch.manual_seed(0)
    net = ViT(
        img_size=grid * 16,
        embed_dim=48,
        depth=4,
        num_heads=3,
        window_size=window_size,
        window_block_indexes=(0, 2),
        use_rel_pos=use_rel_pos,
        pretrain_img_size=64,
        pretrain_use_cls_token=False,
        norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
        out_feature="last_feat",
    )
    theirs = SimpleFeaturePyramid(
        net, "last_feat", 256, scale_factors=(4.0, 2.0, 1.0, 0.5), top_block=LastLevelMaxPool(), norm="LN", square_pad=0
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    encoder = VisionTransformer(
        img_size=64,
        embed_dim=48,
        depth=4,
        num_heads=3,
        window_size=window_size,
        window_block_indexes=(0, 2),
        use_rel_pos=use_rel_pos,
        position_resize="plain",
        final_norm=False,
    )
    state = {k: v for k, v in net.state_dict().items() if "rel_pos" not in k}
    for i, block in enumerate(encoder.blocks):  # ViTDet's tables have the size of its img_size, ours of its own
        for name in ("rel_pos_h", "rel_pos_w") if use_rel_pos else ():
            table = getattr(net.blocks[i].attn, name)
            setattr(block.attn, name, torch.nn.Parameter(table.detach().clone()))
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all("rel_pos" in name for name in missing)
    pyramid = build_pyramid("simple", encoder, 256, num_extra_levels=1)
    copy_pyramid(theirs, pyramid)
    return theirs, encoder, pyramid


PYRAMID_KEYS = {
    "levels.0.resample.0": "simfp_2.0",
    "levels.0.resample.1": "simfp_2.1",
    "levels.0.resample.3": "simfp_2.3",
    "levels.1.resample.0": "simfp_3.0",
}


def copy_pyramid(theirs, pyramid):
    keys = dict(PYRAMID_KEYS)
    for level, (stage, first) in enumerate(((2, 4), (3, 1), (4, 0), (5, 1))):
        keys[f"levels.{level}.lateral"] = f"simfp_{stage}.{first}"
        keys[f"levels.{level}.lateral_norm"] = f"simfp_{stage}.{first}.norm"
        keys[f"levels.{level}.output"] = f"simfp_{stage}.{first + 1}"
        keys[f"levels.{level}.output_norm"] = f"simfp_{stage}.{first + 1}.norm"
    source = theirs.state_dict()
    state = {}
    for name in pyramid.state_dict():
        module, _, kind = name.rpartition(".")
        state[name] = source[f"{keys[module]}.{kind}"]
    pyramid.load_state_dict(state)


@pytest.mark.parametrize("use_rel_pos", [False, True])
@pytest.mark.parametrize("window_size", [3, 4])
@pytest.mark.parametrize("size", [(128, 128), (128, 96), (64, 160)])
def test_same_maps_and_gradients(use_rel_pos, window_size, size):
    theirs, encoder, pyramid = theirs_and_ours(use_rel_pos, window_size)
    x = torch.randn(2, 3, *size)
    expected = theirs(x)
    maps = pyramid(encoder.forward_maps(x), size)
    for (name, a), b in zip(expected.items(), maps, strict=True):
        assert (a - b).abs().max() < 1e-4 * max(1.0, a.abs().max().item()), name
    sum(m.square().mean() for m in expected.values()).backward()
    sum(m.square().mean() for m in maps).backward()
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
        a, b = theirs.net.get_parameter(name).grad, encoder.get_parameter(name).grad
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3, msg=name)
