"""The places that are looked at, by hand."""

import pytest

from pretrain.training.evenly import evenly


@pytest.mark.parametrize(
    ("length", "count", "places"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 3, [0, 3, 6]), (3, 8, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (0, 5, []), (5, 0, [])],
)
def test_places_are_spread_over_all(length: int, count: int, places: list[int]) -> None:
    assert evenly(length, count) == places
