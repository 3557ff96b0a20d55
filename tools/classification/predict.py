"""From `--predict` to predictions.json and pictures with the likeliest classes below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont

from pretrain.data.decode import read_image
from pretrain.training.run_folder import RunFolder, write_json
from tools import cli
from tools.classification.augment import CentralCrop
from tools.classification.dataset import central_batches
from tools.classification.model import Classifier
from tools.finetuning.pictures import picture_names, readable_pictures

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NUM_SHOWN = 5
PICTURE_WIDTH = 360


@torch.no_grad()
def predict_pictures(
    fabric: Fabric,
    classifier: Classifier,
    crop: CentralCrop,
    classes: list[str],
    source: Path,
    folder: RunFolder,
    workers: int,
) -> None:
    """Writes the likeliest classes of a picture, or of all in a folder, into DIR/predictions.

    Args:
        fabric: device, precision, processes.
        classifier: on the device.
        crop: of the test.
        classes: names.
        source: `--predict`.
        folder: of the run; gets predictions/predictions.json and a picture for each.
        workers: data processes.

    Raises:
        ValueError: no picture, or none that can be read.
    """
    root, found = readable_pictures(source)
    names = list(found)
    output = folder.path / "predictions"
    pictures = picture_names(names)
    everything: dict[str, Any] = {}
    classifier.eval()
    for indices, images in central_batches(fabric, [root / name for name in names], crop, workers, "predict"):
        with fabric.autocast():
            shares = classifier.predict(images).softmax(dim=1)
        best = shares.topk(min(NUM_SHOWN, len(classes)), dim=1)
        for index, values, labels in zip(indices.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
            listed = [{"class": classes[label], "score": value} for label, value in zip(labels, values, strict=True)]
            everything[names[index]] = listed
            target = output / pictures[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            draw(read_image(root / names[index]), listed).save(target)
    if fabric.world_size == 1:
        write_json(output / "predictions.json", everything)
    cli.say(folder, f"wrote {len(names)} pictures with their likeliest classes to {output}")


def draw(image: Image.Image, listed: list[dict[str, Any]]) -> Image.Image:
    """Returns the picture with a bar for each class below.

    Args:
        image: RGB.
        listed: `class` and `score` in 0-1.
    """
    height = max(1, round(image.height * PICTURE_WIDTH / image.width))
    font, line = ImageFont.load_default(size=14), 22
    canvas = Image.new("RGB", (PICTURE_WIDTH, height + line * len(listed) + 8), "white")
    canvas.paste(image.resize((PICTURE_WIDTH, height), Image.Resampling.BICUBIC), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for row, entry in enumerate(listed):
        top = height + 4 + line * row
        pen.rectangle((4, top + 2, 4 + (PICTURE_WIDTH - 8) * entry["score"], top + line - 2), fill=(176, 206, 235))
        pen.text((8, top + line / 2), f"{100 * entry['score']:.1f} %  {entry['class']}", "black", font, anchor="lm")
    return canvas
