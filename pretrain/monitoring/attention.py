"""How widely the blocks of an encoder attend: their attention may collapse in a long training, and no loss tells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from splitmask_backbones.vit import Attention, Block


@torch.no_grad()
def attention_entropy(attention: Attention, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns the entropy of the weights with which a token attends over `log N`, mean over all: 0 one, 1 all alike.

    Args:
        attention: without decomposed relative positions.
        x: `(B, N, C)`, its input.
        bias: as of its `forward`.
    """
    batch, num_tokens, dim = x.shape
    with torch.autocast(x.device.type, enabled=False):
        qkv = attention.qkv(x.to(attention.qkv.weight.dtype)).float()
        query, key, _ = qkv.reshape(batch, num_tokens, 3, attention.num_heads, -1).permute(
            2, 0, 3, 1, 4
        )  # each (B, heads, N, D)
        scores = query @ key.transpose(-2, -1) / math.sqrt(dim // attention.num_heads)
        weights = (scores if bias is None else scores + bias.float()).softmax(dim=-1)
        return torch.special.entr(weights).sum(dim=-1).mean() / math.log(num_tokens)


@contextmanager
def watched(blocks: Iterable[Any]) -> Iterator[list[list[Tensor]]]:
    """Yields a list for each block, to which every pass within adds the `attention_entropy` of its batch `(B,)`.

    Once for each image (or window), so that a last batch of a few counts as the few that it is.

    That of a block with decomposed relative positions stays empty.
    """
    found: list[list[Tensor]] = []
    handles = []
    for block in blocks:
        assert isinstance(block, Block)
        entropies: list[Tensor] = []
        found.append(entropies)

        def look(attention: Any, inputs: tuple[Any, ...], entropies: list[Tensor] = entropies) -> None:
            x, _, bias = inputs
            entropies.append(attention_entropy(attention, x, bias).expand(x.shape[0]))

        if not block.attn.use_rel_pos:
            handles.append(block.attn.register_forward_pre_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
