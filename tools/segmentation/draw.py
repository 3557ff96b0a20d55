"""Overlays: the picture, the classes in colour over it, and a legend with each class's share of the pixels."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.segmentation.classes import Classes

ALPHA = 0.55


def draw_overlay(image: Image.Image, labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns the picture with its classes over it, and the legend on the right.

    Args:
        labels: int `(H, W)`, values in `[0, K)`.
    """
    picture = np.asarray(image, dtype=np.float32)
    colours = np.asarray(classes.palette, dtype=np.float32)[labels]
    blended = Image.fromarray(np.rint(ALPHA * colours + (1 - ALPHA) * picture).astype(np.uint8))
    counts = np.bincount(labels.ravel(), minlength=len(classes.names))
    shown = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0]
    size = max(11, min(24, blended.height // 20))
    font = ImageFont.load_default(size=size)
    texts = [f"{classes.names[i]}  {100 * counts[i] / labels.size:.1f} %" for i in shown]
    line, margin = round(1.5 * size), size // 2
    width = round(max(font.getlength(text) for text in texts)) + line + 3 * margin
    height = max(blended.height, line * len(shown) + 2 * margin)
    canvas = Image.new("RGB", (blended.width + width, height), "white")
    canvas.paste(blended, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (index, text) in enumerate(zip(shown, texts, strict=True)):
        top, left = margin + row * line, blended.width + margin
        draw.rectangle((left, top, left + size, top + size), fill=tuple(classes.palette[index]), outline="black")
        draw.text((left + line, top + size / 2), text, fill="black", font=font, anchor="lm")
    return canvas
