"""Plain ViT backbones pre-trained with SplitMask, for detectron2, MMSegmentation, torchvision and timm.

Names are imported on first use, so that ``splitmask_backbones.errors`` and ``splitmask_backbones.registry`` stay free
of torch and command lines answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitmask_backbones.checkpoints import load_encoder, save_encoder
    from splitmask_backbones.pyramid import ResampledTaps, SimpleFeaturePyramid, TappedPyramid, build_pyramid
    from splitmask_backbones.registry import create_encoder, list_encoders
    from splitmask_backbones.vit import VisionTransformer

__version__ = "0.1.0"

_HOME = {
    "create_encoder": "registry",
    "list_encoders": "registry",
    "load_encoder": "checkpoints",
    "save_encoder": "checkpoints",
    "ResampledTaps": "pyramid",
    "SimpleFeaturePyramid": "pyramid",
    "TappedPyramid": "pyramid",
    "build_pyramid": "pyramid",
    "VisionTransformer": "vit",
}

__all__ = [
    "ResampledTaps",
    "SimpleFeaturePyramid",
    "TappedPyramid",
    "VisionTransformer",
    "build_pyramid",
    "create_encoder",
    "list_encoders",
    "load_encoder",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
