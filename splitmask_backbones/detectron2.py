"""detectron2 adapter: `import splitmask_backbones.detectron2` registers the backbone for configs that you already have.

In a YAML config set `MODEL.BACKBONE.NAME: build_splitmask_vit_backbone` and `MODEL.WEIGHTS: encoder.safetensors`; in a
LazyConfig use `L(SplitMaskViTBackbone)(encoder="vit_small", weights="encoder.safetensors")`. Encoder and pyramid are
those of every other framework; this file translates names, shapes, pixels and checkpoints.
"""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitmask_backbones.adapters import check_whole, parameters_of, resolve_encoder
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.pyramid import STRIDES, build_pyramid
from splitmask_backbones.vit import ARGUMENTS, VisionTransformer

try:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY
    from detectron2.modeling.backbone import Backbone
except ImportError as error:
    raise ImportError(
        f"splitmask_backbones.detectron2 needs detectron2, and {error}: PyPI does not hold it, so install it from its "
        "repository with pip install --no-build-isolation"
    ) from error

# Below detectron2's logger, because that is what its programs show.
logger = logging.getLogger("detectron2.splitmask_backbones")

ENCODER_ARGUMENTS = "splitmask_encoder"
"""Entry of a detector's checkpoint: the arguments of its encoder."""

_OF_TRAINING = ("drop_path_rate", "grad_checkpointing")
"""Arguments that change nothing in what a trained encoder computes."""

LEVELS = {f"p{stage}": 2**stage for stage in range(2, 8)}
"""Names of the maps, as detectron2's FPN gives them, and their strides in pixels."""


class SplitMaskViTBackbone(Backbone):
    """The encoder under a feature pyramid, as a detectron2 backbone: maps p2 .. p6 of images of any size.

    Args:
        encoder: a name of `list_encoders()` or a ready `VisionTransformer`; by default that of `weights`, else
            vit_small.
        weights: an encoder file, loaded strictly; a name that contradicts it is an error.
        pyramid: "simple", "tapped" or "taps".
        out_channels: channels of every level; with "taps" they have the encoder's width, whatever is given.
        out_features: consecutive names out of p2 .. p7; levels finer than the first are not built.
        norm: of the pyramid: "LN", "BN", "SyncBN" or "none".
        square_pad: side in pixels to which every batch is padded (ViTDet's large-scale jitter); 0 for none.
        input_format: "RGB" or "BGR", the order of the channels that the detector hands over.
        pixel_mean: what the detector subtracts, in that order, on the scale 0-255; None for ImageNet's.
        pixel_std: what it then divides by; None for ImageNet's.
        **overrides: keyword arguments of `VisionTransformer`.

    Attributes:
        encoder: the `VisionTransformer`.
        pyramid: the pyramid module.

    Raises:
        ValueError: unknown names or keys, unreadable or contradicting weights.
    """

    def __init__(
        self,
        encoder: str | VisionTransformer | None = None,
        weights: str | Path | None = None,
        pyramid: str = "simple",
        out_channels: int = 256,
        out_features: Sequence[str] = ("p2", "p3", "p4", "p5", "p6"),
        norm: str = "LN",
        square_pad: int = 0,
        input_format: str = "RGB",
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if encoder is None and weights is None:
            encoder = "vit_small"
        self._out_features = _consecutive(out_features)
        strides = [LEVELS[name] for name in self._out_features]
        self.encoder = resolve_encoder(encoder, weights, pyramid=pyramid, own=parameters_of(type(self)), **overrides)
        if weights is not None and self.encoder.load_report is not None:
            logger.info("Encoder %s", self.encoder.load_report.summary())
        self.pyramid = build_pyramid(
            pyramid,
            self.encoder,
            out_channels,
            num_extra_levels=sum(stride > STRIDES[-1] for stride in strides),
            norm=norm,
            finest_stride=strides[0],
        )
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict.fromkeys(self._out_features, self.pyramid.out_channels)
        self._square_pad = square_pad
        self.to_encoder_pixels = _pixel_conversion(input_format, pixel_mean, pixel_std)

    @property
    def size_divisibility(self) -> int:
        """The detector pads batches to multiples of 32 pixels: heads that add levels up (panoptic) need whole cells."""
        return STRIDES[-1]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Both rules of detectron2's `ImageList`, under the names that it reads."""
        return {"size_divisibility": self.size_divisibility, "square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns float32 maps `(B, out_channels, ceil(H / stride), ceil(W / stride))` by name.

        Float32 also under autocast: detectron2 rounds the boxes of RoIAlign to the dtype of the maps, and bfloat16
        knows no odd pixel above 256.

        Args:
            x: images `(B, 3, H, W)` as the detector normalises them.
        """
        if self.to_encoder_pixels is not None:
            x = self.to_encoder_pixels(x)
        maps = self.pyramid(self.encoder.forward_maps(x), image_size=(x.shape[-2], x.shape[-1]))
        return {name: value.float() for name, value in zip(self._out_features, maps, strict=True)}


def _consecutive(out_features: Sequence[str]) -> list[str]:
    names = list(LEVELS)
    for name in out_features:
        check_choice("feature map", name, names)
    chosen = [name for name in names if name in out_features]
    first = names.index(chosen[0]) if chosen else 0
    is_row = chosen == names[first : first + len(chosen)] and len(chosen) == len(out_features)
    if not is_row or "p5" not in chosen:
        raise UserError(
            f"out_features {tuple(out_features)} must be consecutive and hold p5, such as p2 .. p6: heads read fewer "
            "by their IN_FEATURES"
        )
    return chosen


class PixelConversion(nn.Module):
    """Turns images normalised in one way into what the encoder was pre-trained on: RGB, ImageNet's mean and std.

    detectron2's stock configs hand over BGR that is not divided by a standard deviation. Zero padding stays near zero.

    Args:
        mean, std: of the given images, per channel in their order, on the scale 0-255.
        flip: whether their channels are B, G, R.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], flip: bool) -> None:
        super().__init__()
        given = torch.tensor([list(mean), list(std)], dtype=torch.float64)
        given = given.flip(1) if flip else given
        own = 255 * torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=torch.float64)
        self.flip = flip
        scale, shift = given[1] / own[1], (given[0] - own[0]) / own[1]
        self.register_buffer("scale", scale.float().reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().reshape(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, 3, H, W)`."""
        return (x.flip(1) if self.flip else x) * self.scale + self.shift


def _pixel_conversion(
    input_format: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> PixelConversion | None:
    check_choice("input format", input_format, ("RGB", "BGR"))
    flip = input_format == "BGR"
    order = slice(None, None, -1 if flip else 1)
    own_mean, own_std = ([255 * value for value in values][order] for values in (IMAGENET_MEAN, IMAGENET_STD))
    given_mean, given_std = (own_mean if mean is None else list(mean)), (own_std if std is None else list(std))
    if len(given_mean) != 3 or len(given_std) != 3:
        raise UserError(f"pixel_mean {given_mean} and pixel_std {given_std} must hold 3 channels each")
    pairs = zip([*given_mean, *given_std], [*own_mean, *own_std], strict=True)
    same = all(abs(given - own) < 0.02 for given, own in pairs)  # configs round to two digits
    return None if same and not flip else PixelConversion(given_mean, given_std, flip)


def add_splitmask_config(cfg: CfgNode) -> None:
    """Adds `cfg.MODEL.SPLITMASK` with its defaults; without it the backbone is built with the same defaults.

    ENCODER "" means that of the weights file (vit_small without one), OUT_FEATURES () what the heads ask for.
    """
    cfg.MODEL.SPLITMASK = CfgNode(_DEFAULTS)
    # Keyword arguments of VisionTransformer, each there, so that detectron2's command line can set it; None: not given.
    cfg.MODEL.SPLITMASK.OVERRIDES = CfgNode(dict.fromkeys(ARGUMENTS), new_allowed=True)


_DEFAULTS: dict[str, Any] = {
    "ENCODER": "",
    "PYRAMID": "simple",
    "OUT_CHANNELS": 256,
    "OUT_FEATURES": (),
    "NORM": "LN",
    "SQUARE_PAD": 0,
    "OVERRIDES": {},
}


@BACKBONE_REGISTRY.register()
def build_splitmask_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SplitMaskViTBackbone:
    """Returns the backbone that `cfg.MODEL.SPLITMASK` describes.

    An encoder file in `cfg.MODEL.WEIGHTS` is loaded here, strictly. Anything else there (a detector's checkpoint) is
    left to detectron2's checkpointer, which then must bring every parameter of the backbone.

    Raises:
        ValueError: as `SplitMaskViTBackbone`; also for a `.pkl` in MODEL.WEIGHTS, which is left over from a ResNet.
    """
    chosen = {**_DEFAULTS, **cfg.MODEL.get("SPLITMASK", {})}
    weights = str(cfg.MODEL.WEIGHTS)
    if weights.endswith(".pkl"):
        raise UserError(
            f"MODEL.WEIGHTS {weights} is a pickle of another backbone: name an encoder.safetensors, a detector's "
            'checkpoint, or "" for random initialisation'
        )
    if not isinstance(chosen["OVERRIDES"], Mapping):
        raise UserError(
            f"MODEL.SPLITMASK.OVERRIDES must be a CfgNode of arguments, got {chosen['OVERRIDES']!r}: set them one by "
            "one, as in cfg.MODEL.SPLITMASK.OVERRIDES.depth = 4"
        )
    return SplitMaskViTBackbone(
        encoder=chosen["ENCODER"] or None,
        weights=weights if is_encoder_file(weights) else None,
        pyramid=chosen["PYRAMID"],
        out_channels=chosen["OUT_CHANNELS"],
        out_features=chosen["OUT_FEATURES"] or _wanted_features(cfg),
        norm=chosen["NORM"],
        square_pad=chosen["SQUARE_PAD"],
        input_format=cfg.INPUT.FORMAT,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        **{n: list(v) if isinstance(v, tuple) else v for n, v in chosen["OVERRIDES"].items() if v is not None},
    )


def _wanted_features(cfg: CfgNode) -> list[str]:
    """Returns the levels that the config's heads read: p3 .. p7 for RetinaNet's stock config, else p2 .. p6."""
    one_stage = {"RetinaNet": "RETINANET", "FCOS": "FCOS"}.get(cfg.MODEL.META_ARCHITECTURE)
    if one_stage is not None and one_stage in cfg.MODEL:
        return list(cfg.MODEL[one_stage].IN_FEATURES)
    return ["p2", "p3", "p4", "p5", "p6"]


def is_encoder_file(path: str) -> bool:
    """Returns whether MODEL.WEIGHTS names an encoder file, by its suffix: the backbone itself loads it."""
    return path.endswith(".safetensors")


def _find_backbone(model: nn.Module) -> tuple[str, SplitMaskViTBackbone] | None:
    return next(((n, m) for n, m in model.named_modules() if isinstance(m, SplitMaskViTBackbone)), None)


def _extend_checkpointer() -> None:
    """Makes detectron2's checkpointer leave encoder files alone, and strict about our backbone.

    Its own `load` would open a safetensors file as a pickle and fail, and it accepts a checkpoint from which the whole
    backbone is missing. What the encoder file said of the encoder goes into each checkpoint beside the model: windows
    or heads leave no trace in the weights. Models without our backbone are not affected.
    """
    load, load_model = DetectionCheckpointer.load, DetectionCheckpointer._load_model
    save = DetectionCheckpointer.save

    @functools.wraps(save)
    def save_with_arguments(self: Any, name: str, **kwargs: Any) -> None:
        found = _find_backbone(self.model)
        save(self, name, **({ENCODER_ARGUMENTS: found[1].encoder.config} if found is not None else {}), **kwargs)

    @functools.wraps(load)
    def load_but_not_encoders(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        found = _find_backbone(self.model)
        if path and found is not None and is_encoder_file(path):
            report = found[1].encoder.load_report
            if report is None or os.path.realpath(report.path) != os.path.realpath(os.path.expanduser(path)):
                raise UserError(
                    f"encoder file {path} was not loaded when the model was built: give it as MODEL.WEIGHTS or as the "
                    "backbone's weights before building"
                )
            logger.info("Encoder %s was loaded when the backbone was built", path)
            return {}
        return load(self, path, *args, **kwargs)

    @functools.wraps(load_model)
    def load_whole_backbones(self: Any, checkpoint: Any) -> Any:
        found = _find_backbone(self.model)
        if found is not None:
            _require_arguments(found[1].encoder.config, checkpoint.get(ENCODER_ARGUMENTS))
        incompatible = load_model(self, checkpoint)
        if found is not None and incompatible is not None:
            _require_whole_backbone(found[0].removeprefix("module."), incompatible)
        return incompatible

    DetectionCheckpointer.save = save_with_arguments
    DetectionCheckpointer.load = load_but_not_encoders
    DetectionCheckpointer._load_model = load_whole_backbones


def _require_arguments(own: dict[str, Any], trained: dict[str, Any] | None) -> None:
    """Raises ValueError where a checkpoint's encoder computes something else; older checkpoints do not say."""
    other = {
        name: value
        for name, value in (trained or {}).items()
        if name not in _OF_TRAINING and _computed(name, value) != _computed(name, own.get(name, value))
    }
    if other:
        shown = ", ".join(f"{name} {value} (here {own[name]})" for name, value in other.items())
        raise UserError(
            f"the checkpoint does not hold this backbone: its encoder has {shown}: set MODEL.SPLITMASK.ENCODER and "
            f"OVERRIDES as in its training, here OVERRIDES: {other}"
        )


def _computed(name: str, value: Any) -> Any:
    """Returns of an argument what decides how a trained encoder computes: a layer scale's number is where it began."""
    return value is not None if name == "layer_scale" else value


def _require_whole_backbone(prefix: str, incompatible: Any) -> None:
    missing = [key for key in incompatible.missing_keys if key.startswith(f"{prefix}.")]
    foreign = [key for key in incompatible.unexpected_keys if key.startswith(f"{prefix}.")]
    wrong = [str(key) for key, *_ in incompatible.incorrect_shapes if key.startswith(f"{prefix}.")]
    check_whole(
        missing,
        foreign,
        wrong,
        "set MODEL.SPLITMASK.ENCODER, PYRAMID and OVERRIDES as in its training, or turn the file into an encoder with "
        "tools/convert.py",
    )


_extend_checkpointer()
