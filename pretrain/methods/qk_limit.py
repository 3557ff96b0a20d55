"""A bound on what makes queries and keys: in a long training they may grow until a patch looks at a single other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.training.distributed import is_distributed
from splitmask_backbones.vit import VisionTransformer

EVERY = 10
"""Steps from one cut to the next. Singular values that grew to 55 in 32,000 steps grew by 0.02 in as many."""


class QueryKeyLimit:
    """Holds the singular values of the matrices that make queries, and keys, at a limit, block by block.

    What is above is cut (the projection onto the ball of the spectral norm), and nothing else is touched: a training in
    which nothing grows that far has the same bytes as without. Attention scores grow with the product of both
    matrices, and the entropy of their softmax shrinks (Zhai et al. 2023, arXiv:2303.06296) until a patch
    looks at a single other. Other cures change the encoder (norms of queries and keys) or how all of its matrices learn
    (that paper's own); this one leaves a plain ViT.

    Args:
        encoder: whose weights are held, as the training begins.
        limit: largest singular value; matrices that begin above it are held where they begin.
    """

    def __init__(self, encoder: VisionTransformer, limit: float) -> None:
        blocks: Any = encoder.blocks
        self.weights: list[Tensor] = [block.attn.qkv.weight for block in blocks]
        self.limits = [[max(limit, _largest(part)) for part in _queries_and_keys(weight)] for weight in self.weights]

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Cuts what is above the limits, in place, after every tenth step; all processes end with the same bytes.

        Args:
            done: number of finished steps.
        """
        if done % EVERY:
            return
        parts = [part for weight in self.weights for part in _queries_and_keys(weight)]
        limits = [limit for pair in self.limits for limit in pair]
        for part, limit, near in zip(parts, limits, _may_exceed(parts, limits), strict=True):
            if near:
                _cut(part, limit)
        if is_distributed():
            for weight in self.weights:
                dist.broadcast(weight, 0)


def _queries_and_keys(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns views of `(C, C)` each of a `(3 C, C)` that makes queries, keys and values."""
    queries, keys, _ = weight.detach().chunk(3)
    return queries, keys


def _largest(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


def _may_exceed(matrices: list[Tensor], limits: list[float]) -> list[bool]:
    """Returns for each `(C, C)` whether a singular value may be above its limit.

    All of them in a few products, since most are far below it and a decomposition takes as long as a step of a small
    model on a GPU. The largest value over its limit to the power of 32 is at most the norm of the Gram matrix's 16th
    power: below 0.5, whatever the products are rounded to, it is below 1.
    """
    scaled = torch.stack(matrices) / torch.tensor(limits, device=matrices[0].device)[:, None, None]
    gram = scaled @ scaled.mT
    for _ in range(4):
        gram = gram @ gram
    norms: list[float] = torch.linalg.vector_norm(gram, dim=(1, 2)).tolist()
    return [not norm < 0.5 for norm in norms]  # what has overflowed is above


def _cut(matrix: Tensor, limit: float) -> None:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((values > limit).sum())  # they come in descending order
    if count:
        matrix -= (left[:, :count] * (values[:count] - limit)) @ right[:count]
