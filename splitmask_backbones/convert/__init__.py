"""Any plain ViT in, any framework out: `from splitmask_backbones.convert import convert`.

Names are imported on first use, so that the command line answers without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitmask_backbones.convert.conversion import Conversion, convert

__all__ = ["FAMILIES", "TARGETS", "Conversion", "convert"]

FAMILIES = ("timm", "deit", "beit", "dino", "mae", "mocov3", "vitdet", "hf", "splitmask")
"""Families that can be read."""

TARGETS = ("splitmask", "timm", "detectron2", "mmseg", "hf")
"""What can be written."""


def __getattr__(name: str) -> Any:
    if name not in ("Conversion", "convert"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from splitmask_backbones.convert import conversion

    return getattr(conversion, name)
