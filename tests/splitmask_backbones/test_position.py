"""XCiT's positions against its formula position by position, and against timm's own module."""

from __future__ import annotations

import math

import pytest
import timm.models.xcit
import torch

from splitmask_backbones import VisionTransformer, load_encoder, save_encoder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.position import FOURIER_CHANNELS, fourier_features, resize_pos_embed

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (4, 2)])
def test_features_by_hand(grid: tuple[int, int]) -> None:
    found = fourier_features(grid)
    assert found.shape == (grid[0] * grid[1], FOURIER_CHANNELS)
    for row in range(grid[0]):
        for col in range(grid[1]):
            expected = []
            for place, length in ((row, grid[0]), (col, grid[1])):
                angle = 2 * math.pi * (place + 1) / length
                for channel in range(32):
                    wave = math.sin if channel % 2 == 0 else math.cos
                    expected.append(wave(angle / 10000 ** (2 * (channel // 2) / 32)))
            assert found[row * grid[1] + col].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(64, 64), (48, 160), (50, 90)])
def test_positions_equal_timms_xcit(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(**TINY, positions="fourier", use_class_token=True)
    theirs = timm.models.xcit.PositionalEncodingFourier(hidden_dim=32, dim=32)
    theirs.token_projection.load_state_dict(
        {"weight": encoder.pos_proj.weight.detach()[:, :, None, None], "bias": encoder.pos_proj.bias.detach()}
    )
    grid = encoder.grid_of(*size)
    expected = theirs(1, *grid).flatten(2).transpose(1, 2)  # (1, C, H, W) -> (1, N, C)
    table = encoder.position_table(grid)
    torch.testing.assert_close(table[:, 1:], expected, atol=2e-5, rtol=1e-4)
    assert table[:, :1].abs().sum() == 0 and table[:, 1:].std() > 0.1


def test_the_projection_learns_and_begins_as_xcits() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(**TINY, positions="fourier", final_norm=False)
    assert encoder.pos_embed is None
    fresh = timm.models.xcit.PositionalEncodingFourier(hidden_dim=32, dim=512).token_projection
    assert encoder.pos_proj.weight.std().item() == pytest.approx(fresh.weight.std().item(), rel=0.05)
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert encoder.pos_proj.weight.grad.abs().sum() > 0
    groups = {name: group for group in param_groups(encoder, 1.0, 0.1, 0.5) for name in group["names"]}
    assert [groups[f"pos_proj.{kind}"]["lr"] for kind in ("weight", "bias")] == [0.5**3] * 2
    assert [groups[f"pos_proj.{kind}"]["weight_decay"] for kind in ("weight", "bias")] == [0.1, 0.0]


def test_a_subset_of_patches_keeps_its_positions_and_bf16_does_not_round_them() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(**TINY, positions="fourier")
    images, ids = torch.randn(1, 3, 64, 64), torch.tensor([[7, 2, 11]])
    whole, _ = encoder.embed(images)
    torch.testing.assert_close(encoder.embed(images, ids)[0], whole[:, ids[0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.embed(images)[0].dtype == encoder.position_table((4, 4)).dtype == torch.float32


def test_learned_positions_of_a_file_are_replaced_and_back(tmp_path) -> None:
    save_encoder(VisionTransformer(**TINY), tmp_path / "learned.safetensors")
    loaded = load_encoder(tmp_path / "learned.safetensors", positions="fourier")
    assert set(loaded.load_report.expected_missing) == {"pos_proj.weight", "pos_proj.bias"}
    assert "positions='fourier'" in loaded.load_report.dropped["pos_embed"]
    save_encoder(loaded, tmp_path / "fourier.safetensors")
    again = load_encoder(tmp_path / "fourier.safetensors")
    assert torch.equal(again.pos_proj.weight, loaded.pos_proj.weight) and not again.load_report.dropped
    fixed = load_encoder(tmp_path / "fourier.safetensors", positions="sincos")
    assert set(fixed.load_report.dropped) == {"pos_proj.weight", "pos_proj.bias"}
    with pytest.raises(ValueError, match="does not fit"):
        load_encoder(tmp_path / "fourier.safetensors", positions="learned")


@pytest.mark.gpu
def test_resized_positions_have_a_deterministic_gradient_on_a_gpu():
    """torch has none of bicubic interpolation there."""
    torch.manual_seed(0)
    found = []
    for device, deterministic in (("cpu", False), ("cuda", False), ("cuda", True)):
        torch.use_deterministic_algorithms(deterministic)
        table = torch.linspace(-1, 1, 16 * 8).reshape(1, 16, 8).to(device).requires_grad_()
        resized = resize_pos_embed(table, (4, 4), (6, 5), 0, "antialias")
        resized.square().sum().backward()
        assert resized.device.type == device
        found.append(table.grad.cpu())
    torch.testing.assert_close(found[1], found[0])
    assert torch.equal(found[2], found[0])
