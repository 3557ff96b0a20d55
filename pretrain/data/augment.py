"""The crop of an image that pre-training sees: random resized crop, flip and, for tiny data sets, stronger changes.

Made of PIL operations and one numpy generator only: the pixels depend on nothing but image, generator and settings, not
on the number of threads or data workers (torchvision draws from torch's global generator, and its resize is threaded).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from splitmask_backbones.errors import UserError

JITTER: tuple[Callable[[Image.Image], ImageEnhance._Enhance], ...] = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
)

GRAY, SOLARISE, BLUR = range(3)


@dataclass(frozen=True)
class Colours:
    """What is drawn for the colours of a crop.

    Attributes:
        change: of GRAY, SOLARISE, BLUR.
        radius: of the blur in pixels; drawn whatever the change is, so that what follows does not depend on it.
        factors: of brightness, contrast and saturation.
        order: in which these three come.
    """

    change: int
    radius: float
    factors: tuple[float, float, float]
    order: tuple[int, int, int]


@dataclass(frozen=True)
class Drawn:
    """What is drawn for a crop.

    Attributes:
        box: left, top, width, height in pixels.
        flipped: from left to right, after the crop.
        colours: None where they stay.
    """

    box: tuple[int, int, int, int]
    flipped: bool
    colours: Colours | None


class PretrainAugment:
    """Turns an image into a training crop: ``(PIL image, generator) -> uint8 (3, img_size, img_size)``, RGB.

    RandomResizedCrop (bicubic, antialiased) and horizontal flip, as SplitMask Sec. 4 and BEiT. ``strong`` adds what
    SplitMask App. A lists for its tiny sets (grayscale, solarisation, Gaussian blur, colour jitter) without
    parameters. Ours: those of DeiT III's 3-Augment, by the same group: exactly one of grayscale, solarisation
    (threshold 128) and blur (radius uniform in 0.1..2 pixels), each as likely, then brightness, contrast and
    saturation, each by a factor uniform in 0.7..1.3, in random order. The geometric part draws first, so the crop of a
    seed is the same with and without ``strong``.

    Args:
        img_size: side of the crop in pixels.
        scale: least and greatest share of the image's area that is cropped.
        ratio: least and greatest width / height of the crop.
        flip: probability of a horizontal flip.
        strong: also change the colours.

    Raises:
        UserError: a range that is empty or not positive, or a probability outside [0, 1].
    """

    def __init__(
        self,
        img_size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        strong: bool = False,
    ) -> None:
        if img_size < 1:
            raise UserError(f"img_size must be at least 1, got {img_size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale must be two increasing shares of the area in (0, 1], got {tuple(scale)}")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise UserError(f"ratio must be two increasing positive numbers (width / height), got {tuple(ratio)}")
        if not 0 <= flip <= 1:
            raise UserError(f"flip is a probability in [0, 1], got {flip}")
        self.img_size, self.scale, self.ratio, self.flip, self.strong = img_size, scale, ratio, flip, strong

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        return to_tensor(self.picture(image, rng))

    def draw(self, width: int, height: int, rng: np.random.Generator) -> Drawn:
        """Returns all that is random in the crop of an image of so many pixels."""
        box = crop_box(width, height, self.scale, self.ratio, rng)
        flipped = bool(rng.random() < self.flip)
        return Drawn(box, flipped, draw_colours(rng) if self.strong else None)

    def picture(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns the crop as a picture."""
        drawn = self.draw(image.width, image.height, rng)
        left, top, width, height = drawn.box
        # Cropped first: resize(box=...) would let pixels from outside the crop into its border.
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((self.img_size, self.img_size), Image.Resampling.BICUBIC)
        if drawn.flipped:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return crop if drawn.colours is None else three_augment(crop, drawn.colours)


def to_tensor(picture: Image.Image | np.ndarray) -> torch.Tensor:
    """Returns uint8 ``(3, H, W)`` of an RGB picture, or of its pixels ``(H, W, 3)``."""
    # (H, W, C) -> (C, H, W)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))


def crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Returns a random box (left, top, width, height) in pixels that lies inside the image.

    torchvision's ``RandomResizedCrop.get_params``: ten tries of a uniform area and a log-uniform aspect ratio, else the
    largest centred box with an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h


def draw_colours(rng: np.random.Generator) -> Colours:
    """Returns what `three_augment` does to an image."""
    change, radius = int(rng.integers(3)), float(rng.uniform(0.1, 2.0))
    return Colours(change, radius, *draw_jitter(rng, 0.3))


def three_augment(image: Image.Image, drawn: Colours) -> Image.Image:
    """Returns ``image`` (RGB) after one of grayscale, solarisation and blur, then colour jitter (DeiT III, Sec. 3)."""
    if drawn.change == GRAY:
        image = image.convert("L").convert("RGB")
    elif drawn.change == SOLARISE:
        image = ImageOps.solarize(image, threshold=128)
    else:
        image = image.filter(ImageFilter.GaussianBlur(drawn.radius))
    return _jittered(image, drawn.factors, drawn.order)


def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Returns ``image`` (RGB) with brightness, contrast and saturation each multiplied by a factor, in random order.

    Args:
        image: RGB.
        rng: the factors are uniform in ``1 - strength .. 1 + strength``.
        strength: in [0, 1].
    """
    return _jittered(image, *draw_jitter(rng, strength))


def draw_jitter(rng: np.random.Generator, strength: float) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """Returns the factors of brightness, contrast and saturation, and the order in which they come."""
    factors = rng.uniform(1 - strength, 1 + strength, size=3)
    return tuple(factors.tolist()), tuple(rng.permutation(3).tolist())


def _jittered(image: Image.Image, factors: tuple[float, float, float], order: tuple[int, int, int]) -> Image.Image:
    for index in order:
        image = JITTER[index](image).enhance(factors[index])
    return image
