"""torchvision adapter: the encoder with its pyramid as a backbone, and torchvision's Mask R-CNN on top of it.

Translates names and shapes; the encoder and the pyramid do the computing, with the same parameter names as in the
other frameworks' adapters (`encoder.*`, `pyramid.*`).
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from splitmask_backbones.adapters import parameters_of, resolve_encoder
from splitmask_backbones.errors import UserError, check_choice, nearest
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.pyramid import LayerNorm2d, build_pyramid
from splitmask_backbones.torchvision_masks import KeepSize, PlacedMasks
from splitmask_backbones.vit import ARGUMENTS, VisionTransformer

BOX_HEADS = ("2fc", "4conv1fc")
# torchvision's own names for p2..p6, so that its stock FasterRCNN, MaskRCNN and poolers find them.
LEVEL_NAMES = ("0", "1", "2", "3", "pool", "pool2")


class SplitMaskBackbone(nn.Module):
    """A plain ViT and a feature pyramid, called as torchvision calls a backbone.

    Attributes:
        encoder: the `VisionTransformer`.
        pyramid: the feature pyramid.
        out_channels: channels of every level.
        strides: pixels per cell of every level, fine to coarse.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        pyramid: str = "simple",
        out_channels: int = 256,
        num_extra_levels: int = 1,
        norm: str = "LN",
    ) -> None:
        super().__init__()
        if not 0 <= num_extra_levels <= len(LEVEL_NAMES) - 4:
            most = len(LEVEL_NAMES) - 4
            raise UserError(f"num_extra_levels={num_extra_levels}: torchvision has names for 0 to {most}")
        self.encoder = encoder
        self.pyramid = build_pyramid(pyramid, encoder, out_channels, num_extra_levels, norm)
        self.out_channels = self.pyramid.out_channels
        self.strides = tuple(self.pyramid.strides)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Returns `(B, out_channels, ceil(H / stride), ceil(W / stride))` per level, named "0", "1", "2", "3", "pool".

        Args:
            x: normalised images `(B, 3, H, W)`, any H and W.
        """
        maps = self.pyramid(self.encoder.forward_maps(x), image_size=(x.shape[-2], x.shape[-1]))
        return OrderedDict(zip(LEVEL_NAMES, maps, strict=False))


def backbone(
    encoder: str | VisionTransformer | None = None,
    weights: str | Path | None = None,
    pyramid: str = "simple",
    out_channels: int = 256,
    num_extra_levels: int = 1,
    norm: str = "LN",
    **overrides: Any,
) -> SplitMaskBackbone:
    """Returns a backbone for any torchvision detector: maps at strides 4, 8, 16, 32 and, by default, 64.

    Args:
        encoder: a name of `list_encoders()` or a ready `VisionTransformer`; by default that of `weights`,
            else vit_small.
        weights: an encoder file, loaded strictly; a name that contradicts it is an error.
        pyramid: "simple", "tapped" or "taps".
        out_channels: channels of every level; with "taps" they have the encoder's width, whatever is given.
        num_extra_levels: levels coarser than stride 32, 0 to 2.
        norm: of the pyramid: "LN", "BN", "SyncBN" or "none".
        **overrides: keyword arguments of `VisionTransformer`.

    Raises:
        ValueError: unknown names or keys, unreadable or contradicting weights.
    """
    if encoder is None and weights is None:
        encoder = "vit_small"
    resolved = resolve_encoder(encoder, weights, pyramid=pyramid, own=parameters_of(backbone), **overrides)
    return SplitMaskBackbone(resolved, pyramid, out_channels, num_extra_levels, norm)


class StridedAnchors(AnchorGenerator):
    """Anchors by the pyramid's strides, in float32.

    torchvision infers strides as image size // map size, which is wrong where a map was rounded up, and takes the
    features' dtype, in which bfloat16 would round coordinates above 256 to even numbers.
    """

    def __init__(self, sizes: Sequence[Any], aspect_ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple(sizes), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Returns float32 `(number of anchors, 4)` as x1, y1, x2, y2 in pixels, once per image."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        # Not `torch.tensor`, which would wait for a GPU to finish the encoder.
        strides = [[torch.full((), s, dtype=torch.int64, device=device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors([list(x.shape[-2:]) for x in feature_maps], strides))
        return [anchors for _ in image_list.image_sizes]


def mask_rcnn(
    encoder: str | VisionTransformer | None = None,
    weights: str | Path | None = None,
    num_classes: int = 91,
    pyramid: str = "simple",
    *,
    out_channels: int = 256,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pyramid_norm: str = "LN",
    rpn_convs: int = 1,
    box_head: str = "2fc",
    box_head_width: int = 1024,
    mask_head_width: int = 256,
    mask_head_convs: int = 4,
    mask_head_norm: str = "none",
    masks: bool = True,
    resize: bool = True,
    **kwargs: Any,
) -> FasterRCNN:
    """Returns torchvision's Mask R-CNN on the encoder: RPN over strides 4 to 64, RoIAlign over 4 to 32.

    Called as torchvision's: a list of float images `(3, H, W)` in [0, 1] and, in training, a list of targets with
    `boxes` float32 `(N, 4)`, `labels` int64 `(N,)` from 1 and `masks` uint8 `(N, H, W)`.

    Args:
        encoder: as in `backbone`.
        weights: as in `backbone`; they are the encoder's, heads start at random.
        num_classes: classes, background included.
        pyramid: "simple", "tapped" or "taps".
        out_channels: as in `backbone`.
        anchor_sizes: pixels, one per level.
        aspect_ratios: height over width.
        pyramid_norm: "LN", "BN", "SyncBN" or "none".
        rpn_convs: convolutions of the RPN's head.
        box_head: "2fc", or "4conv1fc" (ViTDet's).
        box_head_width: of its fully connected layers.
        mask_head_width: of its convolutions.
        mask_head_convs: their number.
        mask_head_norm: "none" or "LN" (ViTDet's).
        masks: False for torchvision's Faster R-CNN, which has no mask head and needs no `masks` in its targets.
        resize: False if images have their final size: then detections stay in its pixels and masks are
            `(N, 1, 28, 28)` within their boxes.
        **kwargs: arguments of torchvision's `MaskRCNN` (`min_size`, `box_detections_per_img`, ...), or of
            `VisionTransformer`.

    Raises:
        ValueError: as `backbone`; unknown arguments with the nearest right one.
    """
    overrides, options = _split_arguments(kwargs)
    check_choice("box_head", box_head, BOX_HEADS)
    check_choice("mask_head_norm", mask_head_norm, ("none", "LN"))
    net = backbone(encoder, weights, pyramid, out_channels, norm=pyramid_norm, **overrides)
    out_channels = net.out_channels
    if len(anchor_sizes) != len(net.strides):
        raise UserError(f"anchor_sizes {tuple(anchor_sizes)} must hold one size per level: {len(net.strides)}")
    options.setdefault("image_mean", list(IMAGENET_MEAN))
    options.setdefault("image_std", list(IMAGENET_STD))
    # The encoder pads to its patch size by itself; doing it here keeps a batch's padding in one place.
    options.setdefault("size_divisible", net.encoder.patch_size)
    if box_head == "2fc":
        head: nn.Module = TwoMLPHead(out_channels * 7 * 7, box_head_width)
    else:
        head = FastRCNNConvFCHead((out_channels, 7, 7), [out_channels] * 4, [box_head_width], norm_layer=LayerNorm2d)
    parts: dict[str, Any] = {
        "rpn_anchor_generator": StridedAnchors(anchor_sizes, aspect_ratios, net.strides),
        "rpn_head": RPNHead(out_channels, len(aspect_ratios), conv_depth=rpn_convs),
        "box_roi_pool": _roi_align(7),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(box_head_width, num_classes),
    }
    if masks:
        parts |= {
            "mask_roi_pool": _roi_align(14),
            "mask_head": MaskRCNNHeads(
                out_channels, (mask_head_width,) * mask_head_convs, 1, LayerNorm2d if mask_head_norm == "LN" else None
            ),
            "mask_predictor": MaskRCNNPredictor(mask_head_width, mask_head_width, num_classes),
        }
    detector = MaskRCNN if masks else FasterRCNN
    model = detector(net, num_classes=None, **{**parts, **options})
    old = model.transform
    model.transform = (PlacedMasks if resize else KeepSize)(
        old.min_size, old.max_size, old.image_mean, old.image_std, size_divisible=old.size_divisible
    )
    model.transform.with_masks = masks
    # Under autocast the heads may answer in bfloat16; boxes and losses need float32.
    for module in (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        if module is not None:
            module.register_forward_hook(_in_float32)
    return model


def _split_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of `VisionTransformer` and those of torchvision's `MaskRCNN`."""
    own = set(inspect.signature(MaskRCNN.__init__).parameters) - {"self", "backbone", "kwargs"} | {"size_divisible"}
    for name in kwargs:
        if name not in own and name not in ARGUMENTS:
            known = own | set(ARGUMENTS) | set(inspect.signature(mask_rcnn).parameters) - {"kwargs"}
            raise UserError(f"unknown argument '{name}' of mask_rcnn: {nearest(name, known)}")
    overrides = {name: value for name, value in kwargs.items() if name in ARGUMENTS}
    return overrides, {name: value for name, value in kwargs.items() if name not in ARGUMENTS}


def _roi_align(output_size: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign(list(LEVEL_NAMES[:4]), output_size, sampling_ratio=2)
    # Set here, because torchvision would guess the scales once and for all from the first batch it meets.
    pool.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    pool.map_levels = initLevelMapper(2, 5)
    return pool


def _in_float32(module: nn.Module, args: Any, output: Any) -> Any:
    return _float32(output)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    return type(value)(_float32(item) for item in value)
