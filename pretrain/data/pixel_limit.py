"""How many pixels an image may have: Pillow's decompression-bomb limit, or what `--max-pixels` says.

Kept in the environment, which every process that is started for the data inherits, however it is started.
"""

import os

from PIL import Image

VARIABLE = "SPLITMASK_MAX_PIXELS"
BYTES_A_PIXEL = 11
"""At its peak, for a colour image: Pillow's own copy (4), the decoded one (4) and the bytes between them (3)."""


def set_pixel_limit(pixels: int) -> None:
    """Lets images have as many pixels, in this process and in those that it starts from now on."""
    os.environ[VARIABLE] = str(pixels)
    apply_pixel_limit()


def apply_pixel_limit() -> int | None:
    """Returns the limit, None for no limit, after telling Pillow of it; cheap, called before each image."""
    text = os.environ.get(VARIABLE, "")
    if text.isdecimal():
        Image.MAX_IMAGE_PIXELS = int(text)
    return Image.MAX_IMAGE_PIXELS


def too_large(pixels: int) -> str:
    """Returns why an image is not read, and what to do."""
    return (
        f"{pixels} pixels are more than the decompression-bomb limit of {Image.MAX_IMAGE_PIXELS}: cut it into tiles (a "
        f"crop of a mosaic shows little of it), or read it whole with --max-pixels {pixels}, which takes about "
        f"{pixels * BYTES_A_PIXEL / 1e9:.1f} GB in each data process"
    )
