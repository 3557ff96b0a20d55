"""Which optimizer group a parameter belongs to, restated from CONTRACT 9 apart from the code."""

from __future__ import annotations

import re


def expected_layer(name: str, depth: int) -> int:
    """Returns the layer of a parameter in a model that holds the encoder under `encoder.`: 0 to depth + 1."""
    inside = name.rpartition("encoder.")[2] if "encoder." in name else ""
    if block := re.match(r"blocks\.(\d+)\.", inside):
        return int(block[1]) + 1
    return 0 if re.match(r"patch_embed|pos_embed|cls_token|reg_token", inside) else depth + 1


def expected_decay(name: str, ndim: int) -> bool:
    """Returns whether a parameter is weight-decayed."""
    return ndim > 1 and not re.search(r"(pos_embed|cls_token|reg_token|rel_pos_[hw]|_bias_table)$", name)
