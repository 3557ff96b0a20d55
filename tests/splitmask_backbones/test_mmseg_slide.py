"""Sliding windows: mmseg's own numbers, in batches; images smaller than the window, padded or not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmseg.models import EncoderDecoder

from splitmask_backbones.mmseg_slide import window_starts
from tests.helpers.segmentor import tiny_segmentor

WINDOW, STRIDE = (48, 64), (32, 40)


@pytest.fixture(scope="module")
def model():
    return tiny_segmentor(WINDOW, STRIDE)


def metas(images):
    return [{"ori_shape": tuple(images.shape[2:]), "img_shape": tuple(images.shape[2:])} for _ in images]


@pytest.mark.parametrize("size", [(48, 64), (49, 64), (80, 104), (81, 150), (130, 64), (20, 30), (20, 150), (1, 1)])
@pytest.mark.parametrize("window_batch", [1, 3, 100])
@torch.no_grad()
def test_equals_mmsegs_own(model, size, window_batch):
    model.test_cfg.window_batch = window_batch
    images = torch.randn(2, 3, *size)
    theirs = EncoderDecoder.slide_inference(model, images, metas(images))
    torch.testing.assert_close(model.slide_inference(images, metas(images)), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(20, 30), (48, 10), (20, 150), (1, 1)])
@torch.no_grad()
def test_images_smaller_than_the_window_are_padded_on_request(model, size, monkeypatch):
    monkeypatch.setitem(model.test_cfg, "pad_to_window", True)
    images = torch.randn(1, 3, *size)
    padded = functional.pad(images, (0, max(0, WINDOW[1] - size[1]), 0, max(0, WINDOW[0] - size[0])))
    expected = EncoderDecoder.slide_inference(model, padded, metas(padded))[:, :, : size[0], : size[1]]
    found = model.inference(images, metas(images))
    assert found.shape == (1, 3, *size)
    assert not torch.allclose(found, EncoderDecoder.slide_inference(model, images, metas(images)), atol=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (129, 161), (90, 323)])
@pytest.mark.parametrize("level", range(4))
@torch.no_grad()
def test_what_a_cell_says_is_said_of_its_own_pixels(model, size, level, monkeypatch):
    """Maps hold the place of each cell's centre; resized as mmseg's heads do it, they hold that of each pixel."""

    def places(inputs):
        stride = 4 * 2**level
        rows, columns = ((torch.arange(-(-side // stride)) + 0.5) * stride for side in inputs.shape[2:])
        there = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None].expand(len(inputs), -1, -1, -1)
        finest = [-(-side // 4) for side in inputs.shape[2:]]
        return [functional.interpolate(there, size=finest, mode="bilinear")]

    monkeypatch.setattr(model, "extract_feat", places)
    monkeypatch.setattr(model.decode_head, "forward", lambda maps: maps[0])
    monkeypatch.setitem(model.test_cfg, "mode", "whole")
    found = model.inference(torch.randn(1, 3, *size), metas(torch.empty(1, 3, *size)))[0]
    half = 2 * 2**level  # within half a cell of the border there is no second centre to go by
    for axis, side in enumerate(size):
        expected = (torch.arange(side) + 0.5).reshape([-1, 1] if axis == 0 else [1, -1])
        wrong = (found[axis] - expected).narrow(axis, half, side - 2 * half)
        assert wrong.abs().max() <= 2, (axis, wrong.abs().max())  # the finest map's own half cell


@torch.no_grad()
def test_mmsegs_own_way_on_request(model, monkeypatch):
    monkeypatch.setitem(model.test_cfg, "mode", "whole")
    images = torch.randn(1, 3, 70, 100)
    padded = functional.pad(images, (0, 28, 0, 26), mode="replicate")
    theirs, whole = (EncoderDecoder.encode_decode(model, given, metas(given)) for given in (images, padded))
    torch.testing.assert_close(model.inference(images, metas(images)), whole[:, :, :70, :100])
    monkeypatch.setitem(model.test_cfg, "size_divisor", 1)
    torch.testing.assert_close(model.inference(images, metas(images)), theirs)
    assert not torch.allclose(theirs, whole[:, :, :70, :100], atol=1e-4)


@torch.no_grad()
def test_windows_run_as_batches(model, monkeypatch):
    sizes = []
    monkeypatch.setattr(model, "encode_decode", lambda x, m: sizes.append((len(x), len(m))) or x[:, :3])
    model.test_cfg.window_batch = 4
    images = torch.randn(1, 3, 112, 144)  # 3 x 3 windows
    torch.testing.assert_close(model.slide_inference(images, metas(images)), images)  # the mean of equal logits
    assert sizes == [(4, 4), (4, 4), (1, 1)]


@torch.no_grad()
def test_a_stride_that_leaves_pixels_out(model, monkeypatch):
    monkeypatch.setattr(model.test_cfg, "stride", (49, 40))
    with pytest.raises(ValueError, match=r"test_cfg.stride \(49, 40\) must lie between 1 and the window"):
        model.slide_inference(torch.randn(1, 3, 150, 150), [{}])


@pytest.mark.parametrize("size", range(5, 30))
def test_windows_cover_everything_and_end_at_the_border(size):
    starts = window_starts(size, 5, 3)
    assert sorted({i + start for start in starts for i in range(5)}) == list(range(size))
    assert starts[0] == 0 and starts[-1] == size - 5 and len(starts) == len(set(starts))
