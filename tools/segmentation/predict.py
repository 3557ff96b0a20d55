"""Overlays: the picture, the classes in colour over it, and a legend with each class's share of the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from PIL import Image, ImageDraw, ImageFont

from pretrain.data.decode import read_image
from pretrain.training.run_folder import RunFolder
from tools import cli
from tools.finetuning.pictures import picture_names, readable_pictures
from tools.finetuning.progress import tracked
from tools.segmentation.classes import Classes
from tools.segmentation.model import Segmentor
from tools.segmentation.tta import MeanOfViews

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ALPHA = 0.55


@torch.no_grad()
def predict_pictures(
    fabric: Fabric,
    segmentor: Segmentor,
    pipeline: list[dict[str, Any]],
    use_tta: bool,
    classes: Classes,
    source: Path,
    folder: RunFolder,
) -> None:
    """Draws the classes of a picture, or of all in a folder, into DIR/predictions; unreadable ones are named.

    Args:
        fabric: processes; each draws its share.
        segmentor: on the device.
        pipeline: of the evaluation; labels are not read.
        use_tta: whether it yields several views of an image.
        classes: names and colours.
        source: `--predict`.
        folder: of the run.

    Raises:
        ValueError: no picture, or none that can be read.
    """
    root, sizes = readable_pictures(source)
    names = list(sizes)
    output = folder.path / "predictions"
    transforms = Compose(pipeline)
    segmentor.eval()
    predict = MeanOfViews(segmentor.model).test_step if use_tta else segmentor.predict
    pictures = list(zip(names, picture_names(names), strict=True))[fabric.global_rank :: fabric.world_size]
    for name, drawn in tracked(pictures, len(pictures), "predict", fabric.is_global_zero):
        sample = predict(pseudo_collate([transforms({"img_path": str(root / name)})]))[0]
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        target = output / drawn
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_overlay(root / name, labels, classes).save(target)
    cli.say(folder, f"wrote {len(names)} overlays to {output}")


def draw_overlay(path: Path, labels: np.ndarray, classes: Classes) -> Image.Image:
    """Returns the picture with its classes over it, and the legend on the right.

    Args:
        path: the picture.
        labels: int `(H, W)`, values in `[0, K)`.
        classes: names and colours.
    """
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
