"""One scene, and the digits that it is made of."""

from __future__ import annotations

import numpy as np

from tools.demos.scenes import INK, KINDS, METAL, digits, draw_scene


def test_coins_stay_visible_whatever_lies_on_them() -> None:
    for seed in range(5):
        pixels, coins = draw_scene(96, False, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3)
        assert pixels.dtype == np.uint8
        assert coins
        assert np.sum([coin.mask for coin in coins], axis=0).max() == 1
        assert all(coin.mask.sum() >= 60 for coin in coins)


def test_a_coin_shows_its_digit_the_right_way_round() -> None:
    """Left half and right half, upper and lower half have the ink that the digit has there."""
    found = {}
    for seed in range(40):
        pixels, coins = draw_scene(160, False, np.random.default_rng(seed))
        dark = np.linalg.norm(pixels / 255 - INK, axis=2) < np.linalg.norm(pixels / 255 - METAL, axis=2)
        for coin in coins:
            if coin.outline is not None:
                x, y = coin.outline.mean(axis=0).round().astype(int)
                ink = dark & coin.mask
                quarters = [ink[:y, :x], ink[:y, x:], ink[y:, :x], ink[y:, x:]]
                found.setdefault(coin.kind, []).append([part.sum() / ink.sum() for part in quarters])
    images, kinds = digits(False)
    for kind in range(KINDS):
        mean = images[kinds == kind].mean(axis=0) / images[kinds == kind].mean() / 64
        expected = [mean[:4, :4].sum(), mean[:4, 4:].sum(), mean[4:, :4].sum(), mean[4:, 4:].sum()]
        assert np.abs(np.mean(found[kind], axis=0) - expected).max() < 0.06


def test_the_digits_to_evaluate_on_are_others() -> None:
    (train, train_kinds), (val, val_kinds) = digits(False), digits(True)
    assert set(train_kinds) == set(val_kinds) == set(range(KINDS))
    assert {image.tobytes() for image in train}.isdisjoint(image.tobytes() for image in val)
