"""Where an image goes: resized, cropped, flipped, padded; the same placement for its pixels, masks, polygons and boxes.

Pixels and masks are resampled by PIL and NumPy on one thread, so the result depends on the random generator alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from det_configs.common.recipe import DetRecipe

PAD_COLOUR = (124, 116, 104)
"""ImageNet's mean colour in 0..255: padding is about zero after normalisation."""


@dataclass(frozen=True)
class Placement:
    """An affine map without rotation.

    Attributes:
        source_size: `(H, W)` of the image.
        scaled_size: `(H, W)` after resizing; not whole where a crop is resized again.
        offset: `(y, x)` of the crop in the resized image.
        crop_size: `(H, W)` of the crop, which lies at the top left of the output.
        output_size: `(H, W)`, at least `crop_size`.
        flip: whether the crop is mirrored left to right.
    """

    source_size: tuple[int, int]
    scaled_size: tuple[float, float]
    offset: tuple[float, float]
    crop_size: tuple[int, int]
    output_size: tuple[int, int]
    flip: bool = False

    def image(self, image: Image.Image) -> np.ndarray:
        """Returns uint8 `(H, W, 3)`, antialiased bilinear, padded with the mean colour."""
        (height, width), (scaled_h, scaled_w), (y, x), (crop_h, crop_w) = (
            self.source_size, self.scaled_size, self.offset, self.crop_size
        )  # fmt: skip
        box = (
            x * width / scaled_w,
            y * height / scaled_h,
            min((x + crop_w) * width / scaled_w, width),
            min((y + crop_h) * height / scaled_h, height),
        )
        pixels = np.asarray(image.resize((crop_w, crop_h), Image.Resampling.BILINEAR, box=box))
        output = np.empty((*self.output_size, 3), np.uint8)
        output[:] = PAD_COLOUR
        output[:crop_h, :crop_w] = pixels[:, ::-1] if self.flip else pixels
        return output

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Returns a mask `(H, W)` at the output's size: the value at each pixel's centre, 0 in the padding."""
        rows, cols = self._sampled()
        output = np.zeros(self.output_size, mask.dtype)
        output[: self.crop_size[0], : self.crop_size[1]] = mask[rows[:, None], cols]
        return output

    def mask_part(self, mask: np.ndarray, window: tuple[int, int, int, int]) -> tuple[int, int, np.ndarray]:
        """Returns what `mask` makes of a mask that is 0 outside of `window` (x1, y1, x2, y2 of the source).

        Args:
            mask: its pixels within the window.

        Returns:
            Row and column in the output, and the pixels `(h, w)` from there on; all others are 0.
        """
        (rows, cols), (x1, y1, x2, y2) = self._sampled(), window
        own_rows = np.flatnonzero((rows >= y1) & (rows < y2))  # in one piece: both go up or down steadily
        own_cols = np.flatnonzero((cols >= x1) & (cols < x2))
        if not own_rows.size or not own_cols.size:
            return 0, 0, np.zeros((0, 0), mask.dtype)
        return int(own_rows[0]), int(own_cols[0]), mask[(rows[own_rows] - y1)[:, None], cols[own_cols] - x1]

    def _sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source's row and column at the centre of each row and column of the crop."""
        rows, cols = (
            np.minimum((np.arange(length) + start + 0.5) * source / scaled, source - 1).astype(np.int64)
            for length, start, source, scaled in zip(
                self.crop_size, self.offset, self.source_size, self.scaled_size, strict=True
            )
        )
        return rows, (cols[::-1] if self.flip else cols)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Returns where points `(N, 2)` (x, y in pixels of the source) come to lie, float64; not only those inside."""
        (y, x), crop_w = self.offset, self.crop_size[1]
        placed = np.asarray(points, float) * self._scale() - (x, y)
        if self.flip:
            placed[:, 0] = crop_w - placed[:, 0]
        return placed

    def box(self, box: Sequence[float]) -> np.ndarray:
        """Returns where a box (x1, y1, x2, y2 in the source) comes to lie, float64 `(4,)`, reaching outside or not."""
        corners = self.points(np.reshape(box, (2, 2)))
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])

    def source_window(self) -> tuple[int, int, int, int]:
        """Returns the pixels of the source that reach into the crop, as x1, y1, x2, y2."""
        (y, x), (crop_h, crop_w) = self.offset, self.crop_size
        scale_x, scale_y = self._scale()
        least = 1e-9  # of a pixel: rounding
        return (
            math.floor(x / scale_x + least),
            math.floor(y / scale_y + least),
            math.ceil((x + crop_w) / scale_x - least),
            math.ceil((y + crop_h) / scale_y - least),
        )

    def _scale(self) -> tuple[float, float]:
        """Returns the factors on x and y."""
        return self.scaled_size[1] / self.source_size[1], self.scaled_size[0] / self.source_size[0]


def fit(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """Returns the largest `(H, W)` of the same shape with sides of at most `short` and `long` pixels."""
    scale = min(short / min(size), long / max(size))
    # Halves are rounded up, as by detectron2's ResizeShortestEdge.
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def training_placement(recipe: DetRecipe) -> Callable[[tuple[int, int], np.random.Generator], Placement]:
    """Returns `(source size, rng) -> Placement` of the recipe's augmentation.

    "lsj" (large-scale jitter): the image fitted into the square times a random factor, then a random crop or padding
    to the square. "multiscale": a random short side, no padding; `recipe.crop` of the images are resized and cropped
    first, as DETR, Swin and XCiT do. Both resizings are one here, so that the second does not blur the first.
    """

    # Of functions at module level: the data workers that are not forked get it through a pickle.
    return partial(_lsj if recipe.augment == "lsj" else _multiscale, recipe)


def _lsj(recipe: DetRecipe, size: tuple[int, int], rng: np.random.Generator) -> Placement:
    side = recipe.img_size
    target = side * rng.uniform(recipe.scale_range[0], recipe.scale_range[1])
    scaled = fit(size, target, target)
    crop = min(scaled[0], side), min(scaled[1], side)
    offset = int(rng.integers(scaled[0] - crop[0] + 1)), int(rng.integers(scaled[1] - crop[1] + 1))
    return Placement(size, scaled, offset, crop, (side, side), bool(rng.random() < recipe.flip))


def _multiscale(recipe: DetRecipe, size: tuple[int, int], rng: np.random.Generator) -> Placement:
    side, long = recipe.img_size, recipe.img_size * recipe.max_long_side
    short = side * rng.uniform(recipe.scale_range[0], recipe.scale_range[1])
    if not recipe.crop or rng.random() >= recipe.crop:
        scaled = fit(size, short, long)
        return Placement(size, scaled, (0, 0), scaled, scaled, bool(rng.random() < recipe.flip))
    first = fit(size, side * rng.choice(recipe.crop_scales), long)
    low, high = (round(side * factor) for factor in recipe.crop_range)
    crop = [int(rng.integers(min(length, low), min(length, high) + 1)) for length in first]
    offset = [int(rng.integers(length - part + 1)) for length, part in zip(first, crop, strict=True)]
    output = fit((crop[0], crop[1]), short, long)
    y_scale, x_scale = output[0] / crop[0], output[1] / crop[1]
    return Placement(
        size,
        (first[0] * y_scale, first[1] * x_scale),
        (offset[0] * y_scale, offset[1] * x_scale),
        output,
        output,
        bool(rng.random() < recipe.flip),
    )


def evaluation_placement(recipe: DetRecipe, size: tuple[int, int]) -> Placement:
    """Returns the placement of an image in evaluation: only resized, as training does at factor 1.

    What `square_pad` adds is the detector's to add: boxes are found in the image alone.
    """
    long = recipe.img_size if recipe.augment == "lsj" else recipe.img_size * recipe.max_long_side
    scaled = fit(size, recipe.img_size, long)
    return Placement(size, scaled, (0, 0), scaled, scaled)
