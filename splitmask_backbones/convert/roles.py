"""Which of several models in one file is the one to use: a teacher before an average, and a student last."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

PATCHES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
"""What the first layer of a ViT is called: by timm and most others, and by Hugging Face."""

CONTAINERS = ("model", "state_dict", "module")
"""Keys that weights lie under, the preferred one first, where their roles do not differ."""
_DEEPEST = 4
"""Levels of dictionaries around tensors; optimizers go deeper."""


def rank(name: str) -> int:
    """Returns 0 for a teacher, 1 for an average of weights, 2 for what has no role, 3 for a student or momentum copy.

    DINO and iBOT evaluate the teacher, I-JEPA the target encoder, and who averages weights evaluates the average; MoCo
    v3 evaluates the base encoder and not the momentum one.

    Args:
        name: a key around weights, or the beginning of their names.
    """
    name = name.lower()
    if "teacher" in name:
        return 0
    if re.search(r"(^|[._])ema([._]|$)|average|target_(encoder|network)", name):
        return 1
    return 3 if "student" in name or "momentum" in name else 2


def ranked(names: Iterable[str]) -> list[str]:
    """Returns the names by rank, those of one rank in alphabetical order."""
    return sorted(names, key=lambda name: (rank(name), name))


def find_tensors(content: Any) -> tuple[tuple[str, ...], dict[str, Tensor], list[tuple[str, ...]]]:
    """Returns the keys around the weights to use, these weights, and the keys around other ViTs in the file.

    Args:
        content: what `torch.load` gave.
    """
    found = list(_all_tensors(content, ()))
    if not found:
        return (), {}, []
    vits = [keys for keys, tensors in found if any(name.endswith(PATCHES) for name in tensors)]

    def preference(item: tuple[tuple[str, ...], dict[str, Tensor]]) -> tuple[bool, int, int, int]:
        keys = item[0]
        order = [CONTAINERS.index(key) for key in keys if key in CONTAINERS]
        own = min(order) if order else len(CONTAINERS) if keys else len(CONTAINERS) + 1
        return keys not in vits, min((rank(key) for key in keys if rank(key) != 2), default=2), own, len(keys)

    keys, tensors = min(found, key=preference)
    return keys, tensors, [other for other in vits if other != keys]


def _all_tensors(content: Any, keys: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or len(keys) > _DEEPEST:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in content.items():
        yield from _all_tensors(value, (*keys, str(key)))
