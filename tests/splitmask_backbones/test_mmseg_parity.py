"""The encoder under UperNet against mmseg's own backbones with converted weights: logits, and ten steps of training.

Under the tapped pyramid mmseg's backbone takes the encoder's place; the taps alone are compared with mmseg's own neck.

mmseg's own is right where the image has the size of the position table, and for BEiT with a table in each block: the
shared table of BEiT's pre-trained files is what mmseg drops.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

DIM, DEPTH, HEADS, SIZE = 24, 4, 3, 64
TAPS = (0, 1, 2, 3)

VIT_KEYS = [
    (r"^patch_embed\.projection", "patch_embed.proj"),
    (r"^layers\.", "blocks."),
    (r"\.ln(\d)", r".norm\1"),
    (r"attn\.attn\.in_proj_", "attn.qkv."),
    (r"attn\.attn\.out_proj", "attn.proj"),
    (r"ffn\.layers\.0\.0", "mlp.fc1"),
    (r"ffn\.layers\.1", "mlp.fc2"),
    (r"gamma_(\d)$", r"ls\1.gamma"),
]
KINDS = [(kind, pyramid) for kind in ("VisionTransformer", "MAE", "BEiT") for pyramid in ("tapped", "taps")]


@MODELS.register_module()
class TheirsUnderOurPyramid(torch.nn.Module):
    """A backbone of mmseg under the tapped pyramid, in the place of the encoder."""

    def __init__(self, backbone):
        super().__init__()
        from splitmask_backbones.pyramid import TappedPyramid

        self.encoder = MODELS.build(backbone)
        self.pyramid = TappedPyramid(DIM, out_channels=8)

    def forward(self, x):
        """Returns the four maps."""
        return tuple(self.pyramid(self.encoder(x), (x.shape[2], x.shape[3])))


def segmentor(backbone, width=8, **parts):
    register_all_modules(init_default_scope=True)
    head = {"type": "UPerHead", "in_channels": [width] * 4, "in_index": [0, 1, 2, 3], "channels": 8, "num_classes": 3}
    return MODELS.build(
        ConfigDict(
            type="EncoderDecoder",
            data_preprocessor={"type": "SegDataPreProcessor"},
            backbone=backbone,
            **parts,
            decode_head={**head, "norm_cfg": {"type": "BN"}, "align_corners": False, "dropout_ratio": 0.0},
            test_cfg={"mode": "whole"},
        )
    )


def renamed(state, kind):
    """Returns the state of an mmseg backbone under the encoder's names."""
    found = {}
    for key, value in state.items():
        if key.endswith("relative_position_index") or kind == "MAE" and ("relative_position" in key or "gamma" in key):
            continue
        for pattern, name in VIT_KEYS:
            key = re.sub(pattern, name, key)
        found[key] = value.clone()
    if kind == "BEiT":
        for i in range(DEPTH):
            query, value = (found.pop(f"blocks.{i}.attn.{part}_bias") for part in "qv")
            found[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, torch.zeros(DIM), value])
    return found


def taps_of(neck):
    """Returns the state of mmseg's Feature2Pyramid under the names of the taps."""
    levels = (neck.upsample_4x, neck.upsample_2x)
    return {f"resamples.{i}.{name}": value for i in (0, 1) for name, value in levels[i].state_dict().items()}


def pair(kind, pyramid):
    """Returns a segmentor on mmseg's backbone, one on ours, with the same weights."""
    torch.manual_seed(0)
    sizes = {"img_size": (SIZE, SIZE), "embed_dims": DIM, "num_layers": DEPTH, "num_heads": HEADS}
    norm = {"type": "LN", "eps": 1e-6}
    theirs_cfg = {"type": kind, **sizes, "out_indices": TAPS, "norm_cfg": norm, "final_norm": False}
    if kind == "VisionTransformer":
        theirs_cfg["patch_bias"] = True
    if kind == "BEiT":
        theirs_cfg["init_values"] = 0.1
    if pyramid == "taps":
        theirs = segmentor(theirs_cfg, DIM, neck={"type": "Feature2Pyramid", "embed_dim": DIM})
        their_encoder, resamples = theirs.backbone, taps_of(theirs.neck)
    else:
        theirs = segmentor({"type": "TheirsUnderOurPyramid", "backbone": theirs_cfg})
        their_encoder, resamples = theirs.backbone.encoder, theirs.backbone.pyramid.state_dict()
    for name, parameter in their_encoder.named_parameters():
        if kind == "MAE" and ("relative_position" in name or "gamma" in name):
            # MAE itself has neither; mmseg's, zeros and 0.1 at the start, would become something in training.
            torch.nn.init.constant_(parameter, float("gamma" in name)).requires_grad_(False)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name or ".ln" in name), std=0.1)
    arguments = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "img_size": SIZE, "out_indices": TAPS}
    if kind == "BEiT":
        arguments |= {"positions": "none", "relative_position_bias": "per_block", "layer_scale": 0.1}
    ours = segmentor(
        {
            "type": "SplitMaskViT",
            "encoder": "vit_tiny",
            "pyramid": pyramid,
            "out_channels": 8,
            "norm": "SyncBN" if pyramid == "taps" else "LN",
            "use_class_token": True,
            "position_resize": "plain",
            **arguments,
        },
        DIM if pyramid == "taps" else 8,
    )
    ours.backbone.encoder.load_state_dict(renamed(their_encoder.state_dict(), kind), strict=True)
    ours.backbone.pyramid.load_state_dict(resamples)
    ours.decode_head.load_state_dict(theirs.decode_head.state_dict())
    return theirs, ours


def batch(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(3, (2, 1, SIZE, SIZE), generator=generator)
    samples = [SegDataSample(metainfo={"img_shape": (SIZE, SIZE)}, gt_sem_seg=PixelData(data=y)) for y in labels]
    return torch.randn(2, 3, SIZE, SIZE, generator=generator), samples


@pytest.mark.parametrize(("kind", "pyramid"), KINDS)
@torch.no_grad()
def test_same_logits(kind, pyramid):
    theirs, ours = (model.eval() for model in pair(kind, pyramid))
    images, _ = batch(0)
    expected = theirs(images)
    assert expected.std() > 0.1  # a comparison of zeros would tell nothing
    torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "pyramid"), KINDS)
def test_same_loss_for_ten_steps(kind, pyramid):
    losses = []
    for model in pair(kind, pyramid):
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        run = []
        for step in range(10):
            loss = sum(value for key, value in model.loss(*batch(step)).items() if "loss" in key)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.append(loss.item())
        losses.append(run)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)  # it did train
