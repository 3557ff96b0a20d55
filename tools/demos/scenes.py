"""One scene: coins with a handwritten digit each on a cloudy ground, overlapping, each with its visible mask.

The digits are real: the 1,797 of 13 people that scikit-learn brings along (Alpaydin and Kaynak, Optical Recognition of
Handwritten Digits, CC BY 4.0). All scenes have one hue and one light, which tell neither a coin nor a scene.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from splitmask_backbones.errors import UserError

KINDS = 5  # the digits 0 to 4
HELD_OUT = 797  # of the digits, the last ones: for the scenes to evaluate on
RADIUS = (0.16, 0.24)  # of the scene's side
LEAST_DISTANCE = 0.8  # of two centres, over the sum of their radii
TURN = 10.0  # degrees, at most, to either side
# One hue: among several, a linear filter parts the ink from the rims of coins, and a random encoder has such filters.
LIGHT = np.array([1.0, 0.97, 0.9])
GROUND, METAL, INK = 0.5, 0.68, 0.23
CLOUDS = 0.075  # what they add to the ground or take from it
PAD = 4  # empty cells around a digit, so that nothing is repeated beyond it


@dataclass(frozen=True)
class Coin:
    """A coin of a scene.

    Attributes:
        kind: 0..4, the digit and the index of `tools.demo_data.CLASSES`.
        mask: bool (H, W), the pixels that are visible.
        outline: float (N, 2) corners (x, y) in pixels where all of the coin is visible, else None.
    """

    kind: int
    mask: np.ndarray
    outline: np.ndarray | None


@cache
def digits(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits of `KINDS`, float (N, 8, 8) in [0, 1], and which they are, int (N,).

    Those that are held out are none of the others.

    Raises:
        ValueError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits  # a second
    except ImportError as error:
        raise UserError(f"the demo's digits come with scikit-learn ({error}): install the extra 'demo'") from None

    found = load_digits()
    part = slice(-HELD_OUT, None) if held_out else slice(None, -HELD_OUT)
    images, kinds = found.images[part] / 16, found.target[part]
    return images[kinds < KINDS], kinds[kinds < KINDS]


def draw_scene(size: int, held_out: bool, rng: np.random.Generator) -> tuple[np.ndarray, list[Coin]]:
    """Returns pixels, uint8 (size, size, 3), and the coins from back to front.

    A coin hides a tenth of another at most.

    Args:
        size: pixels.
        held_out: whether the digits are those to evaluate on.
        rng: what is drawn comes from it.
    """
    images, kinds = digits(held_out)
    clouds = 2 * _smooth_noise(size, size / 3, rng) - 1
    canvas = GROUND + CLOUDS * clouds
    placed: list[tuple[np.ndarray, float]] = []  # centre, radius
    coins: list[Coin] = []
    wanted = int(rng.integers(4, 8))
    for _ in range(wanted * 20):  # some places are taken: try again, but not for ever
        if len(placed) == wanted:
            break
        radius, centre = size * rng.uniform(*RADIUS), rng.uniform(0.1 * size, 0.9 * size, 2)
        if any(np.hypot(*(centre - other)) < LEAST_DISTANCE * (radius + r) for other, r in placed):
            continue
        placed.append((centre, radius))
        index = int(rng.integers(len(kinds)))
        alpha = _coverage(centre, radius, size)
        ink = _written(images[index], centre, radius, rng.uniform(-TURN, TURN), size)
        canvas = canvas + alpha * (METAL * (1 - ink) + INK * ink - canvas)
        mask = alpha > 0.5
        coins = [_under(coin, mask) for coin in coins]
        outline = _circle(centre, radius)
        inside = outline.min() >= 0 and outline.max() <= size
        coins.append(Coin(int(kinds[index]), mask, outline if inside else None))
    canvas = canvas + 0.015 * rng.normal(size=(size, size))  # grain, as a camera's
    return ((canvas[..., None] * LIGHT).clip(0, 1) * 255).round().astype(np.uint8), coins


def _under(coin: Coin, mask: np.ndarray) -> Coin:
    """Returns what another one leaves visible of a coin."""
    return replace(coin, mask=coin.mask & ~mask, outline=None) if (coin.mask & mask).any() else coin


def _circle(centre: np.ndarray, radius: float) -> np.ndarray:
    """Returns corners (x, y) on a circle, float (64, 2)."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + centre


def _coverage(centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Returns the share of each pixel that lies inside a circle, float (size, size) in [0, 1]."""
    y, x = np.mgrid[:size, :size] + 0.5  # the middle of a pixel; its size is all that an edge is soft by
    return (radius - np.hypot(x - centre[0], y - centre[1]) + 0.5).clip(0, 1)


def _written(digit: np.ndarray, centre: np.ndarray, radius: float, degrees: float, size: int) -> np.ndarray:
    """Returns the ink of a digit that fills two thirds of a coin, turned, float (size, size) in [0, 1]."""
    # From a pixel of the scene to one of the 8 x 8: turn around the coin's centre, then scale.
    cell = 4 / 3 * radius / 8
    cos, sin = np.cos(np.radians(degrees)) / cell, np.sin(np.radians(degrees)) / cell
    (x, y), middle = centre, 4 + PAD
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    picture = Image.fromarray(np.pad(digit, PAD).astype(np.float32))
    turned = picture.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(turned, dtype=np.float64).clip(0, 1)


def _smooth_noise(size: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Returns noise with features of about `cell` pixels, float (size, size) in [0, 1]."""
    cells = max(2, round(size / cell))
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return ((fine - fine.min()) / (np.ptp(fine) + 1e-9)).clip(0, 1)
