"""A segmentor of mmseg small enough for a test; import it after the project's stub of mmcv is in place."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules


def tiny_segmentor(window: tuple[int, int], stride: tuple[int, int], **preprocessor: Any) -> torch.nn.Module:
    """Returns a sliding segmentor of 3 classes, in evaluation; the same weights every time."""
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    backbone = {"type": "SplitMaskViT", "encoder": "vit_tiny", "embed_dim": 24, "num_heads": 3, "depth": 2}
    head = {"type": "UPerHead", "in_channels": [8] * 4, "in_index": [0, 1, 2, 3], "channels": 8, "num_classes": 3}
    return MODELS.build(
        ConfigDict(
            type="SlidingEncoderDecoder",
            data_preprocessor={"type": "SegDataPreProcessor", **preprocessor},
            backbone={**backbone, "out_channels": 8},
            decode_head={**head, "norm_cfg": {"type": "BN"}, "align_corners": False},
            test_cfg={"mode": "slide", "crop_size": window, "stride": stride},
        )
    ).eval()
