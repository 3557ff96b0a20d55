"""BEiT's relative-position bias: one learned number per head and offset of two patches, for a grid of any size."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

KINDS = ("none", "shared", "per_block")
NUM_CLASS_ROWS = 3
"""Last rows of a table with a class token: from the token to patches, from patches to it, to itself."""


def num_rows(grid_size: tuple[int, int], with_class_token: bool) -> int:
    """Returns the rows of a table for a grid `(H, W)`: `(2H - 1) * (2W - 1)`, and three more with a class token."""
    height, width = grid_size
    return (2 * height - 1) * (2 * width - 1) + (NUM_CLASS_ROWS if with_class_token else 0)


def relative_bias(
    table: Tensor, table_grid: tuple[int, int], grid_size: tuple[int, int], with_class_token: bool, index: Tensor
) -> Tensor:
    """Returns the bias to be added to the attention scores, `(1, heads, T, T)`, T = H * W, or one more with the token.

    Args:
        table: `(num_rows(table_grid), heads)`; row `(dy + H - 1) * (2W - 1) + dx + W - 1` holds the offset
            query - key `(dy, dx)`.
        table_grid: `(H, W)` that the table was made for.
        grid_size: `(H, W)` of the patches now; the table is resized where it differs.
        with_class_token: whether a class token stands in front.
        index: of `bias_index` for `grid_size`.
    """
    table = resize_bias_table(table, table_grid, grid_size, with_class_token)
    return table[index].permute(2, 0, 1)[None]  # (T, T, heads) -> (1, heads, T, T)


def bias_index(grid_size: tuple[int, int], with_class_token: bool, device: torch.device | str = "cpu") -> Tensor:
    """Returns int64 `(T, T)`: the row of the table for each query and key."""
    height, width = grid_size
    sides = (torch.arange(side, device=device) for side in grid_size)
    rows, cols = torch.meshgrid(*sides, indexing="ij")
    rows, cols = rows.flatten(), cols.flatten()
    offset_y = rows[:, None] - rows[None] + height - 1
    offset_x = cols[:, None] - cols[None] + width - 1
    index = offset_y * (2 * width - 1) + offset_x
    if not with_class_token:
        return index
    end = num_rows(grid_size, with_class_token=True)
    whole = index.new_empty(len(index) + 1, len(index) + 1)
    whole[1:, 1:] = index
    whole[0, :] = end - 3
    whole[:, 0] = end - 2
    whole[0, 0] = end - 1
    return whole


def resize_bias_table(
    table: Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int], with_class_token: bool
) -> Tensor:
    """Returns a table for another grid, by BEiT's rule applied to each axis.

    The known offsets are spread geometrically over the new range, so that near ones stay dense, and a cubic spline
    runs through them. BEiT did so with SciPy's `interp2d`, which is gone; a product of splines is the same.

    Args:
        table: `(num_rows(grid_size), heads)`.
        grid_size: `(H, W)` of the table.
        new_grid_size: `(H', W')`.
        with_class_token: the last three rows then stay as they are.
    """
    if grid_size == new_grid_size:
        return table
    num_offsets = num_rows(grid_size, with_class_token=False)
    offsets, rest = table[:num_offsets], table[num_offsets:]
    maps = offsets.double().reshape(2 * grid_size[0] - 1, 2 * grid_size[1] - 1, -1)
    vertical, horizontal = (
        torch.from_numpy(_resize_matrix(old, new)).to(table.device, non_blocking=True)
        for old, new in zip(grid_size, new_grid_size, strict=True)
    )
    maps = torch.einsum("yv,vwc,xw->yxc", vertical, maps, horizontal)
    resized = maps.flatten(0, 1).to(table.dtype)
    return torch.cat([resized, rest]) if with_class_token else resized


@lru_cache(maxsize=64)
def _resize_matrix(old: int, new: int) -> np.ndarray:
    """Returns float64 `(2 * new - 1, 2 * old - 1)` that takes the values at old offsets to those at new ones.

    NumPy, because a tensor that was made in inference mode could not be kept for a later backward pass.
    """
    if old == new:
        return np.eye(2 * new - 1)
    if old == 1:
        return np.ones((2 * new - 1, 1))
    distances, distance = [], 1.0
    ratio = _geometric_ratio(old - 1, new - 1)
    for i in range(old - 1):
        distances.append(distance)
        distance += ratio ** (i + 1)
    known = np.array([*(-d for d in reversed(distances)), 0.0, *distances])
    return spline_matrix(known, np.arange(-(new - 1), new, dtype=np.float64))


def _geometric_ratio(num_terms: int, total: int) -> float:
    """Returns q in [1.01, 1.5] with 1 + q + ... + q^(num_terms - 1) nearest below `total`, by BEiT's bisection."""
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**num_terms) / (1 - ratio) > total:
            high = ratio
        else:
            low = ratio
    return ratio


def spline_matrix(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns `(len(wanted), len(known))`: the interpolating cubic spline at `wanted` as a linear map of its values.

    "Not-a-knot" at both ends, as FITPACK; outside of the known positions the value at the nearest end; with fewer than
    four positions a polynomial through all.

    Args:
        known: increasing float64 `(n,)`.
        wanted: float64 `(m,)`.
    """
    n = len(known)
    wanted = wanted.clip(known[0], known[-1])
    if n < 4:
        columns = []
        for i in range(n):  # Lagrange
            others = [j for j in range(n) if j != i]
            factors = [(wanted - known[j]) / (known[i] - known[j]) for j in others]
            columns.append(np.prod(factors, axis=0))
        return np.stack(columns, axis=1)
    # Basis: 1, x, x^2, x^3 and (x - k)^3 right of each knot; knots are all positions but the two next to the ends.
    scale = known[-1] - known[0]
    x_known, x_wanted = (known - known[0]) / scale, (wanted - known[0]) / scale
    knots = x_known[2:-2]

    def basis(x: np.ndarray) -> np.ndarray:
        powers = np.stack([x**p for p in range(4)], axis=1)
        return np.concatenate([powers, (x[:, None] - knots[None]).clip(min=0) ** 3], axis=1)

    return np.linalg.solve(basis(x_known).T, basis(x_wanted).T).T
