"""Strides, sizes and the arithmetic of the pyramids."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from splitmask_backbones import VisionTransformer, build_pyramid, load_encoder, save_encoder
from splitmask_backbones.pyramid import make_norm, tap_indices

TINY = {"embed_dim": 32, "depth": 6, "num_heads": 2, "img_size": 64, "final_norm": False}


def build(kind, patch_size=16, extra=1):
    torch.manual_seed(0)
    taps = {"out_indices": tap_indices(6)} if kind != "simple" else {}
    encoder = VisionTransformer(**TINY, patch_size=patch_size, **taps)
    return encoder, build_pyramid(kind, encoder, 8, extra)


@pytest.mark.parametrize("kind", ["simple", "tapped", "taps"])
@pytest.mark.parametrize("size", [(64, 64), (100, 90), (33, 129), (16, 17), (1, 1)])
@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
def test_every_level_has_ceil_rows(kind, size, patch_size):
    encoder, pyramid = build(kind, patch_size)
    maps = pyramid(encoder.forward_maps(torch.randn(1, 3, *size)), size)
    expected = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    assert [tuple(m.shape[-2:]) for m in maps] == expected
    assert {m.shape[1] for m in maps} == {pyramid.out_channels} == {32 if kind == "taps" else 8}
    assert pyramid.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize("patch_size", [7, 14, 17, 18, 20])
@pytest.mark.parametrize("size", [(800, 1333), (1024, 512), (224, 113), (17, 1)])
def test_cells_of_another_patch_size_lie_where_their_pixels_do(patch_size, size):
    """A map of the patches' own centres has at each cell of stride 16 that cell's centre, as far as patches reach."""
    _, pyramid = build("simple", patch_size)
    rows, columns = (patch_size * (torch.arange(-(-side // patch_size)) + 0.5) for side in size)
    found = pyramid.at_base_stride(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None], size)[0]
    for axis, (side, centres) in enumerate(zip(size, (rows, columns), strict=True)):
        expected = (16 * (torch.arange(-(-side // 16)) + 0.5)).clamp(centres[0], centres[-1])
        assert found.shape[1 + axis] == len(expected)
        along = found[axis].mean(1 - axis)
        torch.testing.assert_close(along, expected, atol=1e-2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["simple", "tapped", "taps"])
def test_every_parameter_gets_a_gradient(kind):
    encoder, pyramid = build(kind)
    sum(m.square().sum() for m in pyramid(encoder.forward_maps(torch.randn(1, 3, 64, 64)), (64, 64))).backward()
    for module in (encoder, pyramid):
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


def norm(x, layer):
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], layer.weight, layer.bias, 1e-6).permute(0, 3, 1, 2)


def test_simple_pyramid_by_hand():
    _, pyramid = build("simple")
    x = torch.randn(1, 32, 4, 4)
    maps = pyramid([x], (64, 64))
    first, second, norm1, last = None, None, None, None
    level = pyramid.levels[0]
    first, norm1, _, last = level.resample
    up = F.conv_transpose2d(x, first.weight, first.bias, stride=2)
    up = F.conv_transpose2d(F.gelu(norm(up, norm1)), last.weight, last.bias, stride=2)
    assert up.shape[1] == 8  # a quarter of 32 channels, as in ViTDet
    second = norm(F.conv2d(up, level.lateral.weight), level.lateral_norm)
    expected = norm(F.conv2d(second, level.output.weight, padding=1), level.output_norm)
    torch.testing.assert_close(maps[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps[4], maps[3][:, :, ::2, ::2])


def test_tapped_pyramid_is_a_top_down_fpn():
    _, pyramid = build("tapped", extra=0)
    taps = [torch.randn(1, 32, 4, 4) for _ in range(4)]
    maps = pyramid(taps, (64, 64))
    laterals = [conv(r(t)) for t, r, conv in zip(taps, pyramid.resamples, pyramid.laterals, strict=True)]
    top = laterals[3]
    expected = [top]
    for lateral in reversed(laterals[:3]):
        top = lateral + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected.insert(0, top)
    for out, conv, e in zip(maps, pyramid.outputs, expected, strict=True):
        torch.testing.assert_close(out, conv(e), atol=1e-5, rtol=1e-4)


def test_resampled_taps_by_hand():
    _, pyramid = build("taps", extra=0)
    taps = [torch.randn(1, 32, 4, 4) for _ in range(4)]
    first, norm1, _, last = pyramid.resamples[0]
    up = F.conv_transpose2d(taps[0], first.weight, first.bias, stride=2)
    up = F.conv_transpose2d(F.gelu(norm(up, norm1)), last.weight, last.bias, stride=2)
    twice = F.conv_transpose2d(taps[1], pyramid.resamples[1][0].weight, pyramid.resamples[1][0].bias, stride=2)
    expected = [up, twice, taps[2], F.max_pool2d(taps[3], 2)]
    for out, e in zip(pyramid(taps, (64, 64)), expected, strict=True):
        torch.testing.assert_close(out, e, atol=1e-5, rtol=1e-4)


def test_synchronised_norm_is_a_plain_one_on_one_process():
    torch.manual_seed(0)
    ours, plain = make_norm("SyncBN", 3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 6) * 2 + 1
    torch.testing.assert_close(ours(x), plain(x))
    assert ours.running_mean.abs().sum() > 0
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
    assert ours.state_dict().keys() == nn.SyncBatchNorm(3).state_dict().keys()


def test_synchronised_norm_is_torchs_anywhere_but_on_a_cpu(monkeypatch):
    called = []
    torchs = nn.SyncBatchNorm.forward
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: called.append(self) or torchs(self, x))
    norm = make_norm("SyncBN", 3)
    norm(torch.randn(2, 3, 4, 4))
    assert called == []
    norm = norm.to("meta")
    assert norm(torch.randn(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)
    assert called == [norm]


@pytest.fixture
def processes():
    """A group of one process: what torch checks does not depend on their number."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_synchronised_norm_trains_among_processes_on_a_cpu(processes):
    """Where torch's own refuses twice: DistributedDataParallel, and the first forward pass."""
    x = torch.randn(4, 3, 5, 6)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        nn.parallel.DistributedDataParallel(nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        nn.SyncBatchNorm(3)(x)
    ours = nn.parallel.DistributedDataParallel(make_norm("SyncBN", 3))
    torch.testing.assert_close(ours(x), nn.BatchNorm2d(3)(x))


def test_taps_are_the_papers():
    assert tap_indices(12) == (3, 5, 7, 11)  # after blocks 4, 6, 8, 12
    assert tap_indices(24) == (7, 11, 15, 23)
    for depth in range(4, 25):
        assert len(set(tap_indices(depth))) == 4
        assert list(tap_indices(depth)) == sorted(tap_indices(depth))
    with pytest.raises(ValueError, match="at least 4 blocks"):
        tap_indices(3)


def test_wrong_use():
    encoder, pyramid = build("tapped")
    with pytest.raises(ValueError, match="did you mean 'tapped'"):
        build_pyramid("taped", encoder)
    with pytest.raises(ValueError, match="needs 4 maps"):
        pyramid([torch.randn(1, 32, 4, 4)], (64, 64))


def test_a_pyramid_that_came_with_the_weights_is_taken_where_it_fits(tmp_path):
    encoder, pyramid = build("simple", extra=0)
    given = {name: torch.randn_like(value) for name, value in pyramid.state_dict().items()}
    save_encoder(encoder, tmp_path / "e.safetensors", given)
    loaded, other = (load_encoder(tmp_path / "e.safetensors") for _ in range(2))
    own = build_pyramid("simple", loaded, 8).state_dict()
    assert own.keys() == given.keys() and all(torch.equal(value, given[name]) for name, value in own.items())
    assert {f"pyramid.{name}" for name in given} <= set(loaded.load_report.loaded)
    build_pyramid("simple", other, 16)
    assert "pyramid.*" in other.load_report.dropped
