"""Overlays: the picture, the classes in colour over it, and a legend with each class's share of the pixels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pretrain.data.decode import UnreadableImage
from pretrain.data.sources import SUFFIXES
from splitmask_backbones.errors import UserError
from tools.segmentation.classes import Classes

ALPHA = 0.55


def find_pictures(path: Path) -> list[tuple[Path, str]]:
    """Returns the files to predict, each with its name relative to the folder (or its own, for one file).

    Raises:
        ValueError: nothing there, or no pictures in the folder.
    """
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise UserError(f"--predict {path} does not exist: name a picture or a folder")
    found = sorted(item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
    if not found:
        raise UserError(f"--predict {path} holds no pictures ({', '.join(SUFFIXES)})")
    return [(item, item.relative_to(path).as_posix()) for item in found]


@torch.no_grad()
def predict_pictures(
    model: torch.nn.Module,
    pipeline: list[dict[str, Any]],
    pictures: list[tuple[Path, str]],
    classes: Classes,
    out: Path,
) -> list[Path]:
    """Writes one overlay a picture to `out` and returns the files; unreadable pictures are named and left out.

    Raises:
        ValueError: none of the pictures can be read.
    """
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate

    transforms = Compose(pipeline)
    model.eval()
    written: list[Path] = []
    reason = ""
    for path, name in pictures:
        try:
            sample = transforms({"img_path": str(path)})
        except UnreadableImage as error:
            reason = f"{path}: {error}"
            sys.stderr.write(f"warning: unreadable image {reason}\n")
            continue
        result = model.test_step(pseudo_collate([sample]))[0]  # type: ignore[operator]
        labels = result.pred_sem_seg.data[0].cpu().numpy()
        target = (out / name).with_suffix(".png")
        if target in written:  # a.jpg and a.png
            target = out / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_overlay(path, labels, classes).save(target)
        written.append(target)
    if not written:
        raise UserError(f"none of the {len(pictures)} pictures can be read; the last is {reason}")
    return written


def draw_overlay(path: Path, labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns the picture with its classes over it, and the legend on the right.

    Args:
        path: the picture.
        labels: int `(H, W)`, values in `[0, K)`.
        classes: names and colours.
    """
    from pretrain.data.decode import read_image

    picture = np.asarray(read_image(path), dtype=np.float32)
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
