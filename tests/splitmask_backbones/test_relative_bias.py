"""BEiT's relative-position bias and LayerScale, against timm's BEiT, a naive loop, and SciPy's splines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitmask_backbones import VisionTransformer, load_encoder, save_encoder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.relative_bias import (
    _geometric_ratio,
    bias_index,
    num_rows,
    relative_bias,
    resize_bias_table,
    spline_matrix,
)

SMALL = {"img_size": 64, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize("with_class_token", [True, False])
@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (1, 3)])
def test_bias_of_every_pair_by_hand(grid, with_class_token):
    table = torch.randn(num_rows(grid, with_class_token), 3)
    bias = relative_bias(table, grid, grid, with_class_token, bias_index(grid, with_class_token))
    start = int(with_class_token)
    for q in range(grid[0] * grid[1]):
        for k in range(grid[0] * grid[1]):
            (qy, qx), (ky, kx) = divmod(q, grid[1]), divmod(k, grid[1])
            row = (qy - ky + grid[0] - 1) * (2 * grid[1] - 1) + qx - kx + grid[1] - 1
            assert torch.equal(bias[0, :, start + q, start + k], table[row])
    if with_class_token:
        assert torch.equal(bias[0, :, 0, 0], table[-1])
        assert torch.equal(bias[0, :, 0, 1], table[-3]) and torch.equal(bias[0, :, 1, 0], table[-2])


@pytest.mark.parametrize("count", [4, 5, 7, 27, 31])
def test_splines_equal_scipys(count):
    interpolate = pytest.importorskip("scipy.interpolate", reason="scipy is not installed")
    rng = np.random.default_rng(count)
    x, y = np.cumsum(rng.random(count) + 0.3), rng.normal(size=count)
    wanted = np.linspace(x[0] - 1, x[-1] + 1, 40)
    expected = interpolate.make_interp_spline(x, y, k=3)(wanted.clip(x[0], x[-1]))
    np.testing.assert_allclose(spline_matrix(x, wanted) @ y, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((7, 7), (14, 14)), ((14, 14), (7, 7)), ((6, 6), (9, 13))]
)
def test_resize_is_beits_rule_with_scipys_bivariate_spline(old, new):
    interpolate = pytest.importorskip("scipy.interpolate", reason="scipy is not installed")
    torch.manual_seed(0)
    table = torch.randn(num_rows(old, True), 2)

    def offsets(side, new_side):
        ratio, distance, found = _geometric_ratio(side - 1, new_side - 1), 1.0, []
        for i in range(side - 1):
            found.append(distance)
            distance += ratio ** (i + 1)
        return np.array([*(-d for d in reversed(found)), 0.0, *found])

    resized = resize_bias_table(table, old, new, with_class_token=True)
    assert torch.equal(resized[-3:], table[-3:])
    y, x = offsets(old[0], new[0]), offsets(old[1], new[1])
    for head in range(2):
        values = table[:-3, head].reshape(2 * old[0] - 1, 2 * old[1] - 1).numpy()
        spline = interpolate.RectBivariateSpline(y, x, values, kx=3, ky=3, s=0)
        wanted = [
            np.arange(-(side - 1), side).clip(known[0], known[-1]) for side, known in zip(new, (y, x), strict=True)
        ]
        np.testing.assert_allclose(resized[:-3, head].reshape(2 * new[0] - 1, -1), spline(*wanted), atol=1e-5)


def test_geometric_offsets_reach_the_new_range():
    for new in (24, 32, 64):
        found = _geometric_ratio(13, new - 1)
        assert (found**13 - 1) / (found - 1) == pytest.approx(new - 1, abs=1e-3)


@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_same_tokens_as_timms_beit(kind):
    timm_beit = pytest.importorskip("timm.models.beit", reason="timm is not installed")
    torch.manual_seed(0)
    theirs = timm_beit.Beit(
        img_size=64, embed_dim=32, depth=3, num_heads=2, num_classes=0, init_values=0.1, global_pool="",
        use_abs_pos_emb=False, use_rel_pos_bias=kind == "per_block", use_shared_rel_pos_bias=kind == "shared",
        qkv_bias=True,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = VisionTransformer(
        **SMALL, use_class_token=True, positions="none", relative_position_bias=kind, layer_scale=0.1
    ).eval()
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("rel_pos_bias.", "").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if name.endswith("q_bias"):
            prefix = name.removesuffix("q_bias")
            v_bias = theirs.state_dict()[f"{prefix}v_bias"]
            state[f"{prefix}qkv.bias"] = torch.cat([value, torch.zeros_like(value), v_bias])
        elif not name.endswith(("v_bias", "k_bias", "relative_position_index")):
            state[name] = value
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs.forward_features(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "per_block"])
@pytest.mark.parametrize("size", [(64, 64), (50, 100)])
def test_gradients_windows_checkpointing_and_other_sizes(kind, size):
    torch.manual_seed(0)
    windows = {"window_size": 3, "window_block_indexes": (0, 2)}
    encoder = VisionTransformer(**SMALL, relative_position_bias=kind, layer_scale=0.1, final_norm=False, **windows)
    images = torch.randn(2, 3, *size)
    plain = encoder.forward_maps(images)[0]
    plain.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    grads = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    encoder.grad_checkpointing = True
    encoder.forward_maps(images)[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name])
    with pytest.raises(ValueError, match="ids_keep cannot be used"):
        encoder(images, torch.zeros(2, 1, dtype=torch.int64))


def test_inference_before_training_leaves_nothing_behind():
    encoder = VisionTransformer(**SMALL, relative_position_bias="shared")
    with torch.inference_mode():
        encoder(torch.randn(1, 3, 96, 64))
    encoder(torch.randn(1, 3, 96, 64)).sum().backward()


@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_files_keep_resize_and_drop_the_token(tmp_path, kind):
    torch.manual_seed(0)
    kwargs = {"relative_position_bias": kind, "layer_scale": 0.3, "positions": "none", "final_norm": False}
    encoder = VisionTransformer(**SMALL, use_class_token=True, **kwargs)
    save_encoder(encoder, tmp_path / "e.safetensors")
    images = torch.randn(1, 3, 96, 64)
    same = load_encoder(tmp_path / "e.safetensors")
    torch.testing.assert_close(same(images), encoder(images))
    larger = load_encoder(tmp_path / "e.safetensors", img_size=(96, 64))  # what the smaller one does at run time
    torch.testing.assert_close(larger(images), encoder(images), atol=1e-5, rtol=1e-4)
    assert any("spline" in reason for reason in larger.load_report.resized.values())
    windowed = load_encoder(
        tmp_path / "e.safetensors", use_class_token=False, window_size=2, window_block_indexes=(0, 1)
    )
    assert windowed(images).shape == (1, 24, 32)


def test_groups():
    encoder = VisionTransformer(**SMALL, relative_position_bias="shared", layer_scale=0.1)
    placed = {name: group for group in param_groups(encoder, 1.0, 0.1, 0.5) for name in group["names"]}
    assert placed["relative_position_bias_table"]["lr"] == 1.0  # layer depth + 1
    assert placed["relative_position_bias_table"]["weight_decay"] == placed["blocks.1.ls1.gamma"]["weight_decay"] == 0
    assert placed["blocks.1.ls1.gamma"]["lr"] == 0.5**2


def test_options_that_are_off_add_nothing():
    names = {name for name, _ in VisionTransformer(**SMALL).named_parameters()}
    assert not any("gamma" in name or "bias_table" in name for name in names)
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        VisionTransformer(**SMALL, relative_position_bias="share")
    with pytest.raises(ValueError, match="excludes use_rel_pos"):
        VisionTransformer(**SMALL, relative_position_bias="shared", use_rel_pos=True)
