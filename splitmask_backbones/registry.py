"""The encoders by name. Free of torch until one is created."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from splitmask_backbones.errors import UserError, check_choice

if TYPE_CHECKING:
    from splitmask_backbones.vit import VisionTransformer

# Sizes as in the ViT and DeiT papers; small and base are the two of SplitMask App. A.
ENCODERS: dict[str, dict[str, Any]] = {
    "vit_tiny": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
}


def list_encoders() -> list[str]:
    """Returns the names that `create_encoder` takes, from small to large."""
    return list(ENCODERS)


def encoder_sizes(name: str, embed_dim: int | None = None, depth: int | None = None) -> dict[str, Any]:
    """Returns patch_size, embed_dim, depth and num_heads of the encoder `name`, with a width or depth of one's own.

    Raises:
        ValueError: unknown name, or a width that its heads cannot share and the sin-cos positions cannot fill.
    """
    check_choice("encoder", name, ENCODERS)
    own = {"embed_dim": embed_dim, "depth": depth}
    sizes = {**ENCODERS[name], **{key: size for key, size in own.items() if size is not None}}
    unit = math.lcm(sizes["num_heads"], 4)  # sin and cos of two directions
    if sizes["embed_dim"] % unit:
        raise UserError(f"embed_dim {embed_dim} must be a multiple of {unit}: {name} has {sizes['num_heads']} heads")
    return sizes


def encoder_name(config: Mapping[str, Any]) -> str | None:
    """Returns the name of the encoder whose sizes are those of `config`, the arguments of one; None without a name."""
    fitting = (name for name, sizes in ENCODERS.items() if all(config.get(key) == size for key, size in sizes.items()))
    return next(fitting, None)


def named_sizes(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns how an encoder is named, whose sizes are those of `config`: {"encoder": "vit_tiny", "depth": 6}.

    None where no named encoder has its patch size and heads.
    """
    for name, sizes in ENCODERS.items():
        own = {key: config.get(key) for key, size in sizes.items() if config.get(key) != size}
        if not own or encoder_name(config) is None and set(own) <= {"embed_dim", "depth"}:
            return {"encoder": name, **own}
    return None


def create_encoder(name: str, **overrides: Any) -> VisionTransformer:
    """Returns a randomly initialised `VisionTransformer`.

    Args:
        name: one of `list_encoders()`.
        **overrides: keyword arguments of `VisionTransformer` that win over the named size.

    Raises:
        ValueError: unknown name or keyword, with the nearest right one.
    """
    from splitmask_backbones.vit import VisionTransformer, check_arguments

    check_choice("encoder", name, ENCODERS)
    check_arguments(overrides)
    return VisionTransformer(**{**ENCODERS[name], **overrides})
