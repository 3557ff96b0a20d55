"""Positions: resizing learned tables, sin-cos tables of MAE and of XCiT, and ViTDet's decomposed relative positions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_KINDS = ("learned", "sincos", "fourier", "none")
FOURIER_CHANNELS = 64
"""Of `fourier_features`: XCiT's 32 per axis."""
POSITION_RESIZES = ("antialias", "plain")


def resize_pos_embed(
    pos_embed: Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int], num_prefix_tokens: int, resize: str
) -> Tensor:
    """Returns a position table for another grid, by bicubic interpolation of its patch part in float32.

    Args:
        pos_embed: `(1, num_prefix_tokens + H * W, C)`, patches row by row.
        grid_size: `(H, W)` in patches of the given table.
        new_grid_size: `(H', W')` in patches.
        num_prefix_tokens: entries at the front that are kept as they are.
        resize: "antialias" (timm, DeiT, MAE and ours) or "plain" (ViTDet, DINO).

    Returns:
        `(1, num_prefix_tokens + H' * W', C)` in the table's dtype; the table itself when the grids are equal.
    """
    if grid_size == new_grid_size:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    maps = patches.reshape(1, *grid_size, -1).permute(0, 3, 1, 2).float()  # (1, N, C) -> (1, C, H, W)
    antialias = resize == "antialias"
    maps = _interpolate(maps, size=new_grid_size, mode="bicubic", align_corners=False, antialias=antialias)
    patches = maps.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, patches], dim=1)


def _interpolate(table: Tensor, **how: Any) -> Tensor:
    """Returns `F.interpolate` of a table, on the CPU where a GPU is to be deterministic: it has no such gradient."""
    away = table.is_cuda and torch.are_deterministic_algorithms_enabled()
    return F.interpolate(table.cpu() if away else table, **how).to(table.device)


def sincos_pos_embed(
    grid_size: tuple[int, int], embed_dim: int, num_prefix_tokens: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Returns the fixed 2-D sine-cosine table of MoCo v3 and MAE for any grid.

    The first half of the channels encodes the column, the second half the row, each as sines then cosines of
    `position / 10000 ** (2k / (C / 2))`. Prefix tokens get zeros.

    Args:
        grid_size: `(H, W)` in patches.
        embed_dim: C, a multiple of 4.
        num_prefix_tokens: rows of zeros at the front.
        device: where the table is made.

    Returns:
        float32 `(1, num_prefix_tokens + H * W, C)`.
    """
    quarter = embed_dim // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    rows, cols = (torch.arange(size, dtype=torch.float64, device=device)[:, None] * omega for size in grid_size)
    row_part = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, grid_size[1], -1)
    col_part = torch.cat([cols.sin(), cols.cos()], dim=1)[None].expand(grid_size[0], -1, -1)
    table = torch.cat([col_part, row_part], dim=2).flatten(0, 1).float()
    return F.pad(table, (0, 0, num_prefix_tokens, 0))[None]


def fourier_features(grid_size: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """Returns the sines and cosines of positions relative to the image, which XCiT (and DETR) projects to tokens.

    Row i of H is at the angle `2 pi (i + 1) / H`, so that the last row is at 2 pi in an image of any size; channel pair
    k of an axis holds sine and cosine of `angle / 10000 ** (k / 16)`. The first half encodes the row, the second the
    column.

    Args:
        grid_size: `(H, W)` in patches.
        device: where they are made.

    Returns:
        float64 `(H * W, FOURIER_CHANNELS)`, patches row by row.
    """
    pairs = FOURIER_CHANNELS // 4
    omega = 1.0 / 10000 ** (torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
    rows, cols = (
        2 * math.pi * torch.arange(1, size + 1, dtype=torch.float64, device=device)[:, None] / size * omega
        for size in grid_size
    )
    row_part, col_part = (torch.stack([x.sin(), x.cos()], dim=2).flatten(1) for x in (rows, cols))
    row_part, col_part = row_part[:, None].expand(-1, grid_size[1], -1), col_part[None].expand(grid_size[0], -1, -1)
    return torch.cat([row_part, col_part], dim=2).flatten(0, 1)


def relative_table(table: Tensor, size: int) -> Tensor:
    """Returns ViTDet's relative-position vectors for one axis: entry `[q, k]` belongs to the offset `q - k`.

    Args:
        table: `(L, D)`, offsets `-(L - 1) / 2 ... (L - 1) / 2`; resized linearly to `2 * size - 1` entries.
        size: number of positions along the axis.

    Returns:
        `(size, size, D)`.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = _interpolate(table.float().T[None], size=length, mode="linear")[0].T.to(table.dtype)
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + size - 1]


def decomposed_bias(
    query: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, grid_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Returns the two parts of the attention bias of decomposed relative positions (ViTDet, MViTv2).

    The bias of a query and a key is the sum of the first part at the key's row and the second at its column.

    Args:
        query: `(B, heads, H * W, D)`, not scaled.
        rel_pos_h: `(L_h, D)`, table of row offsets.
        rel_pos_w: `(L_w, D)`, table of column offsets.
        grid_size: `(H, W)`.

    Returns:
        `(B, heads, H * W, H)` and `(B, heads, H * W, W)` in the dtype of the query.
    """
    height, width = grid_size
    grid = query.unflatten(2, grid_size)
    bias_h = torch.einsum("bnhwd,hkd->bnhwk", grid, relative_table(rel_pos_h, height).to(query.dtype))
    bias_w = torch.einsum("bnhwd,wkd->bnhwk", grid, relative_table(rel_pos_w, width).to(query.dtype))
    return bias_h.flatten(2, 3), bias_w.flatten(2, 3)


def attend_in_full(query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Returns attention with a decomposed bias, `(B, heads, N, D)`, by way of all N x N scores.

    The faster way on a CPU, where scaled_dot_product_attention has no fused kernel for a bias with a gradient.
    """
    height, width = bias_h.shape[-1], bias_w.shape[-1]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.unflatten(3, (height, width)) + bias_h[..., :, None] + bias_w[..., None, :]
    return scores.flatten(3).softmax(dim=-1) @ value


def attend_fused(query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Returns the same as `attend_in_full` without ever holding N x N scores, where SDPA has a fused kernel.

    The bias becomes part of the product of query and key: the query is extended by the two parts of its bias, the key
    by ones at its row and its column. Zeros fill the width up to a multiple of 8, as the kernels need.
    """
    (height, width), dim = (bias_h.shape[-1], bias_w.shape[-1]), query.shape[-1]
    rows = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, 0)
    cols = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    place = torch.cat([rows, cols], dim=-1).expand(*key.shape[:2], -1, -1)
    long_query = torch.cat([query, bias_h * dim**0.5, bias_w * dim**0.5], dim=-1)  # SDPA divides by that root
    long_key = torch.cat([key, place], dim=-1)
    fill = (0, -long_key.shape[-1] % 8)
    return F.scaled_dot_product_attention(F.pad(long_query, fill), F.pad(long_key, fill), value, scale=dim**-0.5)
