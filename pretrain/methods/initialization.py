"""How an encoder begins where it does not with the truncated normals that it is made with."""

import math
from typing import Any

import torch

from splitmask_backbones.errors import UserError
from splitmask_backbones.position import sincos_pos_embed
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


@torch.no_grad()
def begin_with_sincos(encoder: VisionTransformer) -> None:
    """Fills the learned table of the patches with MAE's sines and cosines, in place; it is still learned.

    Their RMS is 0.71, that of the patch embedding at the start 0.70; of a truncated normal it is 0.02, and moves to
    0.023 in some hundred steps. Prefix tokens have no place: their rows stay as they are.

    Raises:
        ValueError: the encoder has no learned positions.
    """
    if encoder.pos_embed is None:
        raise UserError(f"positions={encoder.positions!r} are not learned: only learned ones begin as sincos")
    prefix = encoder.num_prefix_tokens
    encoder.pos_embed[:, prefix:] = sincos_pos_embed(encoder.grid_size, encoder.embed_dim)
