"""Any plain ViT in, any framework out: `from splitmask_backbones.convert import convert`.

Names are imported on first use, so that the command line answers without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from splitmask_backbones.convert.names import FAMILIES, TARGETS

if TYPE_CHECKING:
    from splitmask_backbones.convert.conversion import Conversion, convert

__all__ = ["FAMILIES", "TARGETS", "Conversion", "convert"]


def __getattr__(name: str) -> Any:
    if name not in ("Conversion", "convert"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.conversion"), name)
