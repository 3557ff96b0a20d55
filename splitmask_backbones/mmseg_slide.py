"""`SlidingEncoderDecoder`: mmseg's segmentor for maps whose cells are whole, with sliding windows as batches."""

from typing import Any

from torch import Tensor, cat
from torch.nn import functional

from splitmask_backbones import _mmcv_stub
from splitmask_backbones._yapf_cache import import_yapf
from splitmask_backbones.errors import UserError
from splitmask_backbones.pyramid import STRIDES

_mmcv_stub.install()  # before mmseg, which cannot be imported with mmcv-lite alone
import_yapf()
from mmseg.models import EncoderDecoder  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

WINDOW_BATCH = 8
COARSEST = STRIDES[-1]
"""Stride of the coarsest map in pixels."""


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Returns where the windows of one axis begin: every `stride`, the last one flush with the end, as in mmseg.

    Args:
        size: pixels of the axis, at least `window`.
        window: its length.
        stride: between windows.
    """
    return [*range(0, size - window, stride), size - window]


@MODELS.register_module()
class SlidingEncoderDecoder(EncoderDecoder):
    """`EncoderDecoder` that gives the backbone whole cells, and runs the windows of `mode="slide"` as batches.

    mmseg's heads lay the maps of all strides over each other as if they covered the same part of the image. Those of
    this backbone cover `ceil(H / stride) * stride` pixels: at a height of 360, 360 and 384 of them, so that what the
    coarsest map says lies up to 24 pixels beside what the finest says. Crops of a multiple of 32 do not know that, and
    in testing the image is continued by its last row and column to one (`test_cfg.size_divisor`, 32; 1 for mmseg's own
    way), but for windows of the size of the crops. Five models of camvid_tiny (480 x 360) gained 1.3 to 2.7 mIoU by it.

    With `test_cfg=dict(mode="slide", crop_size=, stride=)`, `test_cfg.window_batch` (8) of the windows run at a time;
    the logits are mmseg's. Where the image is smaller than the window in height or width, the window is as small.
    `test_cfg.pad_to_window=True` pads the image instead, with zeros at the bottom and right as crops are in training:
    for backbones of one size, and for models that saw much padding. It is not the default because it costs models that
    saw none: two of camvid_tiny, tested on 160 x 120 pixels, fell from mIoU 19.6 and 20.3 to 17.3 and 16.2.
    """

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Returns logits `(B, classes, H, W)` of images `(B, 3, H, W)`, which the backbone sees continued."""
        height, width = inputs.shape[-2:]
        divisor = int(self.test_cfg.get("size_divisor", COARSEST))
        below, right = -height % divisor, -width % divisor
        if not (below or right) or (height, width) == tuple(self.test_cfg.get("crop_size") or ()):
            return super().encode_decode(inputs, batch_img_metas)
        inputs = functional.pad(inputs, (0, right, 0, below), mode="replicate")
        size = tuple(inputs.shape[-2:])
        metas = [{**meta, "img_shape": size, "pad_shape": size} for meta in batch_img_metas]
        return super().encode_decode(inputs, metas)[:, :, :height, :width]

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Returns logits `(B, classes, H, W)` of images `(B, 3, H, W)`: the mean over all windows of a pixel.

        Raises:
            ValueError: a stride larger than the window, which would leave pixels out.
        """
        window, stride = self.test_cfg.crop_size, self.test_cfg.stride
        if any(step > side or step < 1 for step, side in zip(stride, window, strict=True)):
            raise UserError(f"test_cfg.stride {stride} must lie between 1 and the window {window}")
        height, width = inputs.shape[-2:]
        if self.test_cfg.get("pad_to_window", False):
            inputs = functional.pad(inputs, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
        else:
            window = (min(window[0], height), min(window[1], width))
        starts = [window_starts(inputs.shape[2 + i], window[i], stride[i]) for i in (0, 1)]
        places = [(top, left) for top in starts[0] for left in starts[1]]
        metas = [{**meta, "img_shape": tuple(window), "pad_shape": tuple(window)} for meta in batch_img_metas]
        total = inputs.new_zeros((len(inputs), self.out_channels, *inputs.shape[-2:]))
        count = inputs.new_zeros((1, 1, *inputs.shape[-2:]))
        at_once = max(1, int(self.test_cfg.get("window_batch", WINDOW_BATCH)) // len(inputs))
        for first in range(0, len(places), at_once):
            some = [
                (slice(top, top + window[0]), slice(left, left + window[1]))
                for top, left in places[first : first + at_once]
            ]
            logits = self.encode_decode(cat([inputs[:, :, rows, cols] for rows, cols in some]), metas * len(some))
            for (rows, cols), part in zip(some, logits.split(len(inputs)), strict=True):
                total[:, :, rows, cols] += part
                count[:, :, rows, cols] += 1
        return (total / count)[:, :, :height, :width]
