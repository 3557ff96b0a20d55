"""Which patches each branch of SplitMask sees: BEiT's block mask in exactly equal halves, or disjoint uniform subsets.

A mask is a bool array over the patch grid, True means *masked*. All randomness comes from the numpy generator given.
"""

import math

import numpy as np

from splitmask_backbones.errors import UserError, check_choice

MASK_KINDS = ("block", "uniform")

MIN_PATCHES, MAX_PATCHES = 16, 75
"""Of a block, in BEiT's code."""
MIN_ASPECT = 0.3
"""Smallest height / width of a block, there."""


def block_mask(grid_size: tuple[int, int], num_masked: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a block mask with exactly ``num_masked`` masked patches, bool (H, W).

    BEiT Algorithm 1 as its code has it: blocks of at least 16 patches that newly mask at most 75, of an aspect
    ratio from 0.3 to 1 / 0.3, placed until the count is reached, never more than are left, ten tries a
    block. That sampler stops short of its count when ten tries fail. Ours: the missing patches are then grown onto the
    mask, those with the most masked neighbours first, so that blocks get larger and no specks appear. On grids too
    small for two blocks of 16 patches, blocks may be smaller (half of ``num_masked``).

    Args:
        grid_size: (H, W) in patches.
        num_masked: masked patches, in [0, H * W].
        rng: source of all randomness.

    Raises:
        UserError: ``num_masked`` outside the grid.
    """
    height, width = grid_size
    if not 0 <= num_masked <= height * width:
        raise UserError(
            f"num_masked must be in 0..{height * width} on a grid of {height} x {width} patches, got {num_masked}"
        )
    min_patches = min(MIN_PATCHES, max(1, num_masked // 2))
    mask = np.zeros((height, width), dtype=bool)
    missing = num_masked
    while missing > 0:
        added = _add_block(mask, min_patches, min(missing, MAX_PATCHES), rng)
        if added == 0:
            break
        missing -= added
    while missing > 0:
        missing -= _grow(mask, missing, rng)
    return mask


def _add_block(mask: np.ndarray, min_patches: int, most: int, rng: np.random.Generator) -> int:
    """Masks one block that adds 1 to ``most`` patches, in place; returns how many, 0 after ten failed tries."""
    height, width = mask.shape
    log_aspect = math.log(MIN_ASPECT)
    for _ in range(10):
        u, v, y, x = rng.random(4).tolist()  # one call instead of four: half of the time of a mask
        area = min_patches + (most - min_patches) * u
        aspect = math.exp(log_aspect * (1 - 2 * v))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # Smaller than the grid, as in BEiT; a grid of one row or column has room for blocks of one.
        if not (0 < h < max(height, 2) and 0 < w < max(width, 2)):
            continue
        top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
        block = mask[top : top + h, left : left + w]
        added = h * w - int(np.count_nonzero(block))
        if 0 < added <= most:
            block[:] = True
            return added
    return 0


def _grow(mask: np.ndarray, most: int, rng: np.random.Generator) -> int:
    """Masks up to ``most`` patches beside masked ones, in place; returns how many (at least 1 if any patch is free)."""
    padded = np.pad(mask, 1).astype(np.int8)
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    rank = np.where(mask, -1.0, neighbours + rng.random(mask.shape)).ravel()  # ties are broken at random
    num_beside = int(np.count_nonzero(rank >= 1))
    chosen = np.argsort(-rank, kind="stable")[: min(most, max(num_beside, 1))]
    mask.ravel()[chosen] = True  # a view: masks are contiguous
    return len(chosen)


BEIT_SHARE = MAX_PATCHES / 196
"""Share of the patches that BEiT masks."""


def beit_mask(grid_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns the masked patches of BEiT's block mask, int64 `(K,)`, sorted: 75 of 196, the same share of other grids.

    Ours: exactly that many for each image, where BEiT's sampler may stop short, so that a batch is one tensor.
    """
    num_masked = max(1, round(BEIT_SHARE * grid_size[0] * grid_size[1]))
    return np.flatnonzero(block_mask(grid_size, num_masked, rng).ravel()).astype(np.int64)


def split_halves(
    kind: str, grid_size: tuple[int, int], rng: np.random.Generator, mask_ratio: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patches that branch A and branch B see: two int64 (K,), sorted, row-major in [0, H * W), disjoint.

    ``block`` (SplitMask App. A): A is the mask, B its complement, K = N / 2 each; only ``mask_ratio`` 0.5 splits in
    halves. ``uniform`` (App. A, tiny sets, 0.75): each branch sees K = floor(N * (1 - mask_ratio)) patches drawn
    uniformly. Ours: the two are disjoint, so they cover all patches at 0.5 and half of them at 0.75.

    Args:
        kind: "block" or "uniform".
        grid_size: (H, W) in patches; an even number of patches, at least 4.
        rng: source of all randomness.
        mask_ratio: share of patches that a branch does not see, in [0.5, 1).

    Raises:
        UserError: unknown kind, a grid that has no equal halves, or a ratio that leaves no patch or makes the two
            overlap.
    """
    check_choice("mask", kind, MASK_KINDS)
    height, width = grid_size
    num_patches = height * width
    if num_patches < 4 or num_patches % 2:
        raise UserError(
            f"a grid of {height} x {width} patches has no two equal halves: "
            f"choose an img_size with an even number of patches, at least 4"
        )
    if kind == "block":
        if mask_ratio != 0.5:
            raise UserError(
                f"mask_ratio of the block mask must be 0.5, got {mask_ratio}: use mask 'uniform' for other ratios"
            )
        mask = block_mask(grid_size, num_patches // 2, rng).ravel()
        return np.flatnonzero(mask).astype(np.int64), np.flatnonzero(~mask).astype(np.int64)
    num_seen = math.floor(num_patches * (1 - mask_ratio) + 1e-9)  # 0.7 and the like are not exact in binary
    if not 0.5 <= mask_ratio < 1 or num_seen < 1:
        raise UserError(
            f"mask_ratio {mask_ratio} on {height} x {width} patches: must be at least 0.5, so that the two subsets "
            f"are disjoint, and leave each branch a patch"
        )
    order = rng.permutation(num_patches).astype(np.int64)
    return np.sort(order[:num_seen]), np.sort(order[num_seen : 2 * num_seen])
