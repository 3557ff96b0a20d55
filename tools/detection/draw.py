"""Pictures with the boxes, masks, names and scores of what a detector found."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

MASK_OPACITY = 0.45


def colour(index: int) -> tuple[int, int, int]:
    """Returns a colour that differs clearly from its neighbours': hues a golden angle apart."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.61803398875 % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: Image.Image, found: dict[str, Any], names: Sequence[str], min_score: float) -> Image.Image:
    """Returns the picture with every detection of at least `min_score`; the weakest are drawn first.

    Args:
        image: RGB, of the size that the detections refer to.
        found: `boxes, labels, scores, masks` of an engine's `detect`; masks may be None.
        names: of the labels; one class is not written out again at every box.
        min_score: in [0, 1].
    """
    chosen = [i for i in np.argsort(found["scores"]) if found["scores"][i] >= min_score]
    pixels = np.asarray(image).astype(np.float32)
    for i in chosen if found["masks"] is not None else ():
        mask = coco_mask.decode(found["masks"][i]).astype(bool)
        pixels[mask] = (1 - MASK_OPACITY) * pixels[mask] + MASK_OPACITY * np.array(colour(int(i)), np.float32)
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    line = max(1, round(max(image.size) / 500))
    font = ImageFont.load_default(max(9, round(max(image.size) / 55)))
    crowded = len(chosen) > 40  # labels would hide the picture
    for i in chosen:
        x1, y1, x2, y2 = (float(side) for side in found["boxes"][i])
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour(int(i)), width=line)
        if crowded:
            continue
        score = f"{found['scores'][i]:.2f}"
        text = score if len(names) == 1 else f"{names[int(found['labels'][i])]} {score}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        x = min(max(0.0, x1), max(0.0, image.width - (right - left) - 2))
        y = max(0.0, y1 - (bottom - top) - 3)
        pen.rectangle((x, y, x + right - left + 2, y + bottom - top + 3), fill=colour(int(i)))
        pen.text((x + 1 - left, y + 1 - top), text, fill=(0, 0, 0), font=font)
    return picture
