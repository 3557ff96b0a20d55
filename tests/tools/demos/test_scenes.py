"""One scene, and the digits that it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from tools.demos.scenes import KINDS, _written, digits, draw_scene


def test_coins_stay_visible_whatever_lies_on_them() -> None:
    for seed in range(5):
        pixels, coins = draw_scene(96, False, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert coins
        assert np.sum([coin.mask for coin in coins], axis=0).max() == 1
        assert all(coin.mask.sum() >= 60 for coin in coins)


def test_a_digit_is_written_where_it_should_and_as_it_is() -> None:
    """Cells of the coin's middle, averaged, are the 8 x 8 values; mirrored or turned ones are not."""
    images, kinds = digits(False)
    digit = images[kinds == 3][0]
    ink = _written(digit, np.array([50.0, 60.0]), 36.0, 0.0, 96)  # cells of 6 pixels
    cells = ink[36:84, 26:74].reshape(8, 6, 8, 6).mean(axis=(1, 3))
    assert ink.sum() == pytest.approx(ink[36:84, 26:74].sum(), rel=0.06)  # strokes are soft
    alike = [np.corrcoef(cells.ravel(), other.ravel())[0, 1] for other in (digit, digit[::-1], digit[:, ::-1], digit.T)]
    assert alike[0] > 0.95 > 0.8 > max(alike[1:])
    turned = _written(digit, np.array([50.0, 60.0]), 36.0, 90.0, 96)[36:84, 26:74]
    assert np.abs(turned - np.rot90(ink[36:84, 26:74], -1)).max() < 0.02  # clockwise


def test_the_digits_to_evaluate_on_are_others() -> None:
    (train, train_kinds), (val, val_kinds) = digits(False), digits(True)
    assert set(train_kinds) == set(val_kinds) == set(range(KINDS))
    assert {image.tobytes() for image in train}.isdisjoint(image.tobytes() for image in val)
