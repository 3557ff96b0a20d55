"""How more than 8 bits become 8: the range of values that is spread over 0..255, without what stands for no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

ValueRange = tuple[float, float]
"""The value that becomes 0, and the one that becomes 255; those beyond become the nearer of the two."""

PERCENTILES = (0.1, 99.9)
"""One hot pixel must not decide: the range holds all but a thousandth of the values on each side."""
CUSTOMARY = (1.0, 255.0, 65535.0)
"""Ends of ranges that begin at 0: data of which the upper half is in use are taken for what they are."""
NO_DATA = (-9999.0, -32768.0)
"""Values that geodata have where nothing was measured, beside those that are not finite or beyond 1e30."""
_GDAL_NODATA = 42113
"""TIFF tag with the file's own such value, as text."""


def range_in(config: Mapping[str, Any]) -> ValueRange | None:
    """Returns the range that a run's config.json records, None where its images are of 8 bits."""
    found = config.get("data", {}).get("value_range")
    return None if found is None else (found[0], found[1])


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image has one channel of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def measured(values: np.ndarray, image: Image.Image | None = None) -> np.ndarray:
    """Returns bool, the shape of `values`: where something was measured."""
    finite = values.astype(np.float64)
    there = np.isfinite(finite) & (np.abs(finite) < 1e30)
    tag: Any = None if image is None else getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    for given in [*NO_DATA, *([tag] if tag is not None else [])]:
        try:
            there &= finite != float(str(given).strip("\0 "))
        except ValueError:
            continue
    return there


def range_of(values: np.ndarray) -> ValueRange:
    """Returns the range of measured values `(N,)`: their `PERCENTILES`, or a `CUSTOMARY` range that they use."""
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values.astype(np.float64), PERCENTILES))
    if low >= 0:
        for end in CUSTOMARY:
            if end / 2 < high <= end and (end > 1 or values.dtype.kind == "f"):
                return 0.0, end
    if low == high:  # one grey: dark stays dark
        return min(low, 0.0), next((end for end in CUSTOMARY if low <= end), low + 1)
    return low, high


def to_8_bits(values: np.ndarray, there: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
    """Returns uint8 `(H, W)`; what was not measured is 0.

    Args:
        values: integers or floats `(H, W)`.
        there: of `measured`.
        value_range: None for that of these values alone.
    """
    low, high = range_of(values[there]) if value_range is None else value_range
    gray = np.where(there, values, low).astype(np.float64)
    return np.rint((np.clip(gray, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)
