"""A picture with its likeliest classes below."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

PICTURE_WIDTH, TALLEST = 360, 4
"""Pixels, and how many widths a picture may be high; a higher one is narrower."""


def draw(image: Image.Image, listed: list[dict[str, Any]]) -> Image.Image:
    """Returns the picture with a bar for each class below.

    Args:
        listed: `class` and `score` in 0-1.
    """
    scale = min(PICTURE_WIDTH / image.width, TALLEST * PICTURE_WIDTH / image.height)
    width, height = (max(1, round(scale * side)) for side in image.size)
    font, line = ImageFont.load_default(size=14), 22
    canvas = Image.new("RGB", (PICTURE_WIDTH, height + line * len(listed) + 8), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for row, entry in enumerate(listed):
        top = height + 4 + line * row
        pen.rectangle((4, top + 2, 4 + (PICTURE_WIDTH - 8) * entry["score"], top + line - 2), fill=(176, 206, 235))
        pen.text((8, top + line / 2), f"{100 * entry['score']:.1f} %  {entry['class']}", "black", font, anchor="lm")
    return canvas
