"""Masks: exact counts, BEiT's own distribution of blocks, disjoint subsets, any grid."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import masking
from pretrain.data.masking import beit_mask, block_mask, split_halves
from splitmask_backbones.errors import UserError

EVEN_GRIDS = [(14, 14), (2, 2), (1, 4), (4, 1), (2, 8), (16, 12), (12, 16), (3, 6), (24, 24), (1, 50)]


def published_mask(height: int, width: int, target: int, rng: random.Random, low: int = 16, high: int = 75):
    """BEiT Algorithm 1, restated with Python's lists and generator; returns (mask, sizes of the blocks in patches)."""
    mask = [[0] * width for _ in range(height)]
    sizes = []
    count = 0
    while count < target:
        most = min(target - count, high)
        added = 0
        for _ in range(10):
            area = rng.uniform(low, most)
            aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h >= height or w >= width:
                continue
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            cells = [(y, x) for y in range(top, top + h) for x in range(left, left + w)]
            new = [cell for cell in cells if not mask[cell[0]][cell[1]]]
            if 0 < len(new) <= most:
                for y, x in new:
                    mask[y][x] = 1
                added = len(new)
                sizes.append(h * w)
                break
        if not added:
            break
        count += added
    return np.array(mask, dtype=bool), sizes


def num_pieces(mask: np.ndarray) -> int:
    """The 4-connected regions of a mask."""
    left = {tuple(cell) for cell in np.argwhere(mask)}
    pieces = 0
    while left:
        pieces += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for cell in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if cell in left:
                    left.remove(cell)
                    stack.append(cell)
    return pieces


@pytest.mark.parametrize("grid_size", EVEN_GRIDS)
def test_block_halves_are_exact_on_any_grid(grid_size):
    num_patches = grid_size[0] * grid_size[1]
    for seed in range(200):
        ids_a, ids_b = split_halves("block", grid_size, np.random.default_rng(seed))
        assert len(ids_a) == len(ids_b) == num_patches // 2
        np.testing.assert_array_equal(np.sort(np.concatenate([ids_a, ids_b])), np.arange(num_patches))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_count_is_exact_for_every_count(height, width, data):
    num_masked = data.draw(st.integers(0, height * width))
    mask = block_mask((height, width), num_masked, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    assert mask.sum() == num_masked


def test_matches_the_published_sampler():
    """Coverage of every patch, connectedness, and size of the first block, against the naive restatement."""
    num_draws = 3000
    theirs, ours = np.zeros((14, 14)), np.zeros((14, 14))
    their_pieces = our_pieces = 0
    generator, rng = random.Random(0), np.random.default_rng(0)
    complete = 0
    while complete < num_draws:
        mask, _ = published_mask(14, 14, 98, generator)
        if mask.sum() == 98:  # where theirs stops short, ours goes on: compared where both are defined
            theirs += mask
            their_pieces += num_pieces(mask)
            complete += 1
    for _ in range(num_draws):
        mask = block_mask((14, 14), 98, rng)
        ours += mask
        our_pieces += num_pieces(mask)
    # Standard error of a difference of two shares: at most sqrt(2 * 0.25 / 3000) = 0.013; 196 patches are compared.
    assert np.abs(theirs - ours).max() / num_draws < 0.06
    assert np.abs(theirs - ours).mean() / num_draws < 0.015
    assert abs(their_pieces - our_pieces) / num_draws < 0.08
    # Blocks leave the corners alone far more than the centre: uniform masks would fail all of the above.
    assert ours[0, 0] / num_draws < 0.15
    assert ours[6:8, 6:8].min() / num_draws > 0.75


def test_first_block_has_the_published_size(monkeypatch):
    """Of the masks that training uses: 16 to 75 patches a block, before its sides are rounded."""
    theirs = []
    generator = random.Random(1)
    for _ in range(3000):
        theirs.append(published_mask(14, 14, 98, generator)[1][0])
    ours: list[int] = []
    add_block = masking._add_block

    def first_size(mask: np.ndarray, *limits: object) -> int:
        is_first = not mask.any()
        added = add_block(mask, *limits)
        if is_first:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert added == mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "not one full rectangle"
            ours.append(added)
        return added

    monkeypatch.setattr(masking, "_add_block", first_size)
    rng = np.random.default_rng(1)
    for _ in range(3000):
        split_halves("block", (14, 14), rng)
    assert len(ours) == 3000
    assert 12 <= min(ours) <= 16
    assert 72 <= max(ours) <= 75
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(ours, share) - np.quantile(theirs, share)) <= 3


def test_topping_up_grows_blocks_and_makes_no_specks():
    """The patches that BEiT's sampler leaves over touch the mask: they never add a piece."""
    from pretrain.data.masking import _grow

    for seed in range(200):
        mask, _ = published_mask(14, 14, 80, random.Random(seed))
        before, pieces = mask.copy(), num_pieces(mask)
        added = _grow(mask, 9, np.random.default_rng(seed))
        assert added == 9
        assert mask.sum() == before.sum() + 9
        assert mask[before].all()
        assert num_pieces(mask) <= pieces


def test_same_seed_same_mask_and_other_seed_another():
    first = split_halves("block", (14, 14), np.random.default_rng([7, 3, 11]))
    again = split_halves("block", (14, 14), np.random.default_rng([7, 3, 11]))
    other = split_halves("block", (14, 14), np.random.default_rng([7, 3, 12]))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("grid_size", "ratio", "num_seen"),
    [((14, 14), 0.75, 49), ((14, 14), 0.5, 98), ((2, 2), 0.75, 1), ((2, 3), 0.75, 1), ((10, 10), 0.7, 30)],
)
def test_uniform_subsets_are_disjoint(grid_size, ratio, num_seen):
    num_patches = grid_size[0] * grid_size[1]
    count_a, count_b = np.zeros(num_patches), np.zeros(num_patches)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        ids_a, ids_b = split_halves("uniform", grid_size, rng, ratio)
        assert len(ids_a) == len(ids_b) == num_seen
        assert len(set(ids_a) | set(ids_b)) == 2 * num_seen
        count_a[ids_a] += 1
        count_b[ids_b] += 1
    for count in (count_a, count_b):
        np.testing.assert_allclose(count / 2000, num_seen / num_patches, atol=0.06)


@pytest.mark.parametrize("kind", ["block", "uniform"])
def test_ids_are_sorted_row_major_int64(kind):
    for ids in split_halves(kind, (16, 12), np.random.default_rng(0)):
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
        assert 0 <= ids[0] <= ids[-1] < 192


def test_branch_a_is_the_mask_row_by_row():
    mask = block_mask((16, 12), 96, np.random.default_rng(5))
    ids_a, ids_b = split_halves("block", (16, 12), np.random.default_rng(5))
    assert all(mask[i // 12, i % 12] for i in ids_a)
    assert not any(mask[i // 12, i % 12] for i in ids_b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blok", (14, 14)), "did you mean 'block'"),
        (("block", (7, 7)), "even number of patches"),
        (("block", (1, 2)), "at least 4"),
        (("block", (14, 14), 0.75), "use mask 'uniform'"),
        (("uniform", (14, 14), 0.4), "at least 0.5"),
        (("uniform", (14, 14), 1.0), "mask_ratio 1.0"),
        (("uniform", (2, 2), 0.9), "leave each branch a patch"),
    ],
)
def test_unusable_settings_are_named(arguments, message):
    kind, grid_size, *ratio = arguments
    with pytest.raises(UserError, match=message):
        split_halves(kind, grid_size, np.random.default_rng(0), *ratio)


def test_block_mask_refuses_impossible_counts():
    with pytest.raises(UserError, match=r"0\.\.196"):
        block_mask((14, 14), 197, np.random.default_rng(0))


def test_a_mask_costs_less_than_decoding():
    rng = np.random.default_rng(0)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            split_halves("block", (14, 14), rng)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 0.3e-3 * 3  # measured 0.05 ms; three times the target for a busy machine


@pytest.mark.parametrize(("grid", "count"), [((14, 14), 75), ((8, 8), 24), ((4, 4), 6), ((2, 2), 2), ((32, 32), 392)])
def test_mask_has_75_of_196_or_their_share(grid, count):
    for seed in range(20):
        ids = beit_mask(grid, np.random.default_rng(seed))
        assert ids.dtype == np.int64 and len(np.unique(ids)) == len(ids) == count
        assert ids.min() >= 0 and ids.max() < grid[0] * grid[1]
    assert not np.array_equal(ids, beit_mask(grid, np.random.default_rng(0))) or count == 2
