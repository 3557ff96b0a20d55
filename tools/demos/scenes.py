"""One synthetic scene: textured shapes on a textured ground, overlapping, each with its visible mask."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

KINDS = 5  # disc, box, triangle, star, ring
OWN_TEXTURE = 0.75  # share of the shapes that carry the texture of their class; the others any
FINE = 4  # outlines are drawn at this scale and averaged: smooth edges


@dataclass(frozen=True)
class Shape:
    """A shape of a scene.

    Attributes:
        kind: 0..4, index of `tools.demo_data.CLASSES`.
        mask: bool (H, W), the pixels that are visible.
        outline: float (N, 2) corners (x, y) in pixels where all of the shape is visible and it has no hole, else None.
    """

    kind: int
    mask: np.ndarray
    outline: np.ndarray | None


def draw_scene(size: int, kinds: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """Returns pixels, uint8 (size, size, 3), and the shapes from back to front.

    Every shape keeps at least 60 % of its area visible and 60 pixels of it.
    """
    canvas = _ground(size, rng)
    whole: list[tuple[int, np.ndarray, np.ndarray]] = []  # kind, mask, outline
    visible: list[np.ndarray] = []
    wanted = int(rng.integers(3, 8))
    for _ in range(wanted * 6):  # some places are taken: try again, but not for ever
        if len(whole) == wanted:
            break
        kind = int(rng.integers(kinds))
        radius = size * rng.uniform(0.085, 0.2)
        centre = rng.uniform(0.03 * size, 0.97 * size, 2)
        outline = _outline(kind, centre, radius, rng)
        alpha = _coverage(outline, size)
        if kind == 4:
            alpha = alpha * (1 - _coverage((outline - centre) * rng.uniform(0.45, 0.6) + centre, size))
        mask = alpha > 0.5
        left = [old & ~mask for old in visible]
        enough = all(after.sum() >= max(60, 0.6 * item[1].sum()) for after, item in zip(left, whole, strict=True))
        if not enough or mask.sum() < 60:
            continue
        texture = kind if rng.random() < OWN_TEXTURE else int(rng.integers(kinds))
        canvas = _shadow(canvas, alpha, size)
        canvas += alpha[..., None] * (_paint(TEXTURES[texture], size, rng) - canvas)
        whole.append((kind, mask, outline))
        visible = [*left, mask]
    shapes = []
    for (kind, mask, outline), seen in zip(whole, visible, strict=True):
        inside = outline.min() >= 0 and outline.max() <= size
        whole_outline = kind != 4 and inside and bool((mask == seen).all())
        shapes.append(Shape(kind, seen, outline if whole_outline else None))
    canvas += rng.normal(0, 0.015, canvas.shape)  # grain, as a camera's
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), shapes


def _outline(kind: int, centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the corners (x, y) of a randomly turned and stretched shape, float (N, 2)."""
    turn = rng.uniform(0, 2 * np.pi)
    if kind in (0, 4):
        angle, reach = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.ones(48)
    elif kind == 1:
        angle, reach = np.pi / 4 + np.arange(4) * np.pi / 2, np.full(4, 1.1)
    elif kind == 2:
        angle, reach = np.arange(3) * 2 * np.pi / 3, np.full(3, 1.25)
    else:
        angle, reach = np.arange(10) * np.pi / 5, np.tile([1.25, 0.55], 5)
    stretch = np.array([1.0, rng.uniform(0.75, 1.0)])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] * stretch * radius
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points @ turned.T + centre


def _coverage(outline: np.ndarray, size: int) -> np.ndarray:
    """Returns the share of each pixel that lies inside the outline, float (size, size) in [0, 1]."""
    picture = Image.new("L", (size * FINE, size * FINE))
    # A pixel's centre is half a pixel from its corner; pillow draws on centres.
    ImageDraw.Draw(picture).polygon([(float(x) * FINE - 0.5, float(y) * FINE - 0.5) for x, y in outline], fill=255)
    fine = np.asarray(picture, dtype=np.float64) / 255
    return fine.reshape(size, FINE, size, FINE).mean(axis=(1, 3))


def _shadow(canvas: np.ndarray, alpha: np.ndarray, size: int) -> np.ndarray:
    """Returns the canvas darkened where the shape's soft shadow falls: below and to the right of it."""
    shift = max(1, size // 50)
    soft = np.zeros_like(alpha)
    for step in range(1, shift + 1):
        soft[step:, step:] += alpha[:-step, :-step] / shift
    return canvas * (1 - 0.35 * soft[..., None])


def _grid(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixel coordinates along a random direction and across it."""
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _smooth_noise(size: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Returns noise with features of about `cell` pixels, float (size, size) in [0, 1]."""
    cells = max(2, round(size / cell))
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return ((fine - fine.min()) / (np.ptp(fine) + 1e-9)).clip(0, 1)


def _edge(wave: np.ndarray) -> np.ndarray:
    """Returns a wave in [-1, 1] with its flanks made steep, in [0, 1]."""
    return 0.5 + 0.5 * np.tanh(4 * wave)


def _stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    along, _ = _grid(size, rng)
    return _edge(np.sin(2 * np.pi * along / rng.uniform(5, 9) + rng.uniform(0, 6)))


def _checks(size: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _grid(size, rng)
    period = rng.uniform(8, 13)
    return _edge(2 * np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))


def _speckle(size: int, rng: np.random.Generator) -> np.ndarray:
    return 0.65 * _smooth_noise(size, 2.5, rng) + 0.35 * rng.random((size, size))


def _gradient(size: int, rng: np.random.Generator) -> np.ndarray:
    along, _ = _grid(size, rng)
    return 0.5 + 0.5 * np.sin(2 * np.pi * along / (size * rng.uniform(0.35, 0.6)) + rng.uniform(0, 6))


def _dots(size: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _grid(size, rng)
    period = rng.uniform(6, 9)
    return _edge(np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period) - 0.6)


Texture = Callable[[int, np.random.Generator], np.ndarray]
TEXTURES: tuple[Texture, ...] = (_stripes, _checks, _speckle, _gradient, _dots)


def _paint(texture: Texture, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the texture between two random colours of different brightness, float (size, size, 3) in [0, 1]."""
    hue, other = rng.random(), rng.uniform(-0.12, 0.12)
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.35, 0.85), rng.uniform(0.2, 0.5))
    light = colorsys.hsv_to_rgb((hue + other) % 1, rng.uniform(0.2, 0.7), rng.uniform(0.65, 1.0))
    weight = texture(size, rng)[..., None]
    return np.array(dark) * (1 - weight) + np.array(light) * weight


def _ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the ground: soft clouds of two near colours, as fine as the shapes' textures here and there."""
    hue, value = rng.random(), rng.uniform(0.35, 0.75)
    first = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.5), value)
    second = colorsys.hsv_to_rgb((hue + rng.uniform(-0.2, 0.2)) % 1, rng.uniform(0.1, 0.5), value + 0.2)
    clouds = 0.6 * _smooth_noise(size, 40, rng) + 0.3 * _smooth_noise(size, 12, rng) + 0.1 * _smooth_noise(size, 4, rng)
    weight = clouds[..., None]
    return np.array(first) * (1 - weight) + np.array(second) * weight
