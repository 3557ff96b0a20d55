"""How an encoder begins, beside the truncated normals that it is made with."""

import math
from typing import Any

import torch

from splitmask_backbones.vit import VisionTransformer


@torch.no_grad()
def rescale_residuals(encoder: VisionTransformer) -> None:
    """Divides the last matrix of both residual branches of block l (from 1) by `sqrt(2 l)`, in place.

    BEiT Sec. 2.5, and `fix_init_weight` of its code: what a block adds then shrinks with its depth, and the sum over
    all blocks grows with the root of the logarithm of their number and not of their number.
    """
    blocks: Any = encoder.blocks
    for number, block in enumerate(blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight /= math.sqrt(2 * number)
