"""Shares of the labels: how many, nested, and drawn by the seed."""

import pytest

from tools.finetuning.labels import labelled


def test_smaller_shares_are_part_of_larger_ones():
    items = [f"image {i}" for i in range(100)]
    shares = {share: labelled("train", items, share, seed=3) for share in (0.05, 0.07, 0.1, 0.25, 1.0)}
    assert [len(found) for found in shares.values()] == [5, 7, 10, 25, 100]
    for smaller, larger in zip(list(shares.values()), list(shares.values())[1:], strict=False):
        assert set(smaller) < set(larger)
    assert shares[1.0] == items and shares[0.25] == sorted(shares[0.25], key=items.index), "in their order"
    assert labelled("val", items, 0.05, seed=3) == items


def test_the_seed_draws():
    items = list(range(200))
    assert labelled("train", items, 0.1, 0) == labelled("train", items, 0.1, 0) != labelled("train", items, 0.1, 1)
    assert labelled("train", items, 0.1, 0) != items[:20]


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(3, 0.01, 1), (100, 1e-9, 1), (10, 0.25, 3), (1, 1.0, 1), (0, 0.5, 0)]
)
def test_there_is_at_least_one(count, share, expected):
    assert len(labelled("train", range(count), share, 0)) == expected
