"""detectron2's ViT restated from its definition, one plain step after the other, to prove conversions without it.

Li et al. 2022 (ViTDet). Slow and simple; shares no code with `VisionTransformer`, and a test holds it to detectron2's.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def vitdet_map(
    state: Mapping[str, Tensor], images: Tensor, num_heads: int, window_size: int, window_block_indexes: tuple[int, ...]
) -> Tensor:
    """Returns the last map `(B, C, H / p, W / p)` of detectron2's ViT with the parameters `state`, eps 1e-6.

    Args:
        state: by detectron2's names, below "backbone.net.".
        images: `(B, 3, H, W)`, multiples of the patch size.
        num_heads: of every block.
        window_size: patches per side.
        window_block_indexes: blocks with windows.
    """
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1]).permute(0, 2, 3, 1)
    if "pos_embed" in state:
        x = x + _positions(state["pos_embed"], x.shape[1], x.shape[2])
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        block = {n.removeprefix(f"blocks.{i}."): v for n, v in state.items() if n.startswith(f"blocks.{i}.")}
        normed = _norm(x, block, "norm1")
        if window_size and i in window_block_indexes:
            x = x + _in_windows(normed, block, num_heads, window_size)
        else:
            x = x + _attention(normed, block, num_heads)
        hidden = F.gelu(F.linear(_norm(x, block, "norm2"), block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(hidden, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x.permute(0, 3, 1, 2)


def _norm(x: Tensor, block: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], block[f"{name}.weight"], block[f"{name}.bias"], 1e-6)


def _positions(table: Tensor, height: int, width: int) -> Tensor:
    side = int(table.shape[1] ** 0.5)
    maps = table[:, table.shape[1] - side * side :].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (side, side) != (height, width):
        maps = F.interpolate(maps, size=(height, width), mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1)


def _in_windows(x: Tensor, block: Mapping[str, Tensor], num_heads: int, size: int) -> Tensor:
    _, height, width, _ = x.shape
    result = torch.zeros_like(x)
    for top in range(0, height, size):
        for left in range(0, width, size):
            part = x[:, top : top + size, left : left + size]
            rows, cols = part.shape[1:3]
            whole = F.pad(part, (0, 0, 0, size - cols, 0, size - rows))
            result[:, top : top + size, left : left + size] = _attention(whole, block, num_heads)[:, :rows, :cols]
    return result


def _attention(x: Tensor, block: Mapping[str, Tensor], num_heads: int) -> Tensor:
    batch, height, width, dim = x.shape
    head_dim = dim // num_heads
    qkv = F.linear(x, block["attn.qkv.weight"], block.get("attn.qkv.bias"))
    parts = qkv.reshape(batch, height * width, 3, num_heads, head_dim)
    out = []
    for head in range(num_heads):
        query, key, value = (parts[:, :, which, head] for which in range(3))
        scores = torch.einsum("bqd,bkd->bqk", query, key) / head_dim**0.5
        if "attn.rel_pos_h" in block:
            rows = _offsets(block["attn.rel_pos_h"], height)  # (H, H, D)
            cols = _offsets(block["attn.rel_pos_w"], width)
            grid = query.reshape(batch, height, width, head_dim)
            by_row = torch.einsum("byxd,yvd->byxv", grid, rows)[..., None].expand(-1, -1, -1, -1, width)
            by_col = torch.einsum("byxd,xwd->byxw", grid, cols)[..., None, :].expand(-1, -1, -1, height, -1)
            scores = scores + (by_row + by_col).reshape(batch, height * width, height * width)
        out.append(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), value))
    joined = torch.cat(out, dim=-1).reshape(batch, height, width, dim)
    return F.linear(joined, block["attn.proj.weight"], block["attn.proj.bias"])


def _offsets(table: Tensor, size: int) -> Tensor:
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    return torch.stack([torch.stack([table[q - k + size - 1] for k in range(size)]) for q in range(size)])
