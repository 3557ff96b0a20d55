"""What an encoder within a detector or segmentor is given to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def seen_by(encoder: Any, call: Callable[[], object]) -> Tensor:
    """Returns the first images `(B, 3, H, W)` that an encoder makes maps of while `call` runs."""
    seen: list[Tensor] = []
    original = encoder.forward_maps

    def recorded(images: Tensor, *args: Any) -> Any:
        seen.append(images.detach().clone())
        return original(images, *args)

    encoder.forward_maps = recorded
    try:
        call()
    finally:
        del encoder.forward_maps
    return seen[0]
