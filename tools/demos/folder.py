"""The demo on your own COCO-layout folder: at most so many images of it, and labels for segmentation from its masks."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tools.detection.coco import CocoSplit, ImageRecord
    from tools.detection.splits import Location

MAX_IMAGES = {"train": 2000, "val": 200}  # what a demo on two cores can read; more is for the tools themselves
SHORT_SIDE = 160  # pixels of the segmentation images, about that of the synthetic ones
MAX_CLASSES = 253  # labels are bytes: 0 is background, 254 spare, 255 means "ignore"
IGNORE = 255


@dataclass(frozen=True)
class DemoFolder:
    """Annotations and image folders that the jobs are given, and what was left out, in words."""

    locations: dict[str, Location]
    splits: dict[str, CocoSplit]
    notes: list[str]


def open_folder(data: str, work: Path) -> DemoFolder:
    """Returns the checked annotations of a COCO-layout folder, with every n-th image where there are too many.

    Args:
        data: ROOT with `train*/`, `val*/` and `annotations/instances_*.json`.
        work: folder for shortened annotation files; not made unless there is one.

    Raises:
        ValueError: the folder or its files cannot be used.
    """
    from tools.detection.splits import Location, locate, read_splits

    locations = locate(data)
    splits = read_splits(locations)
    notes = []
    for name, split in splits.items():
        limit = MAX_IMAGES[name]
        if len(split.images) <= limit:
            continue
        notes.append(f"{name}: {limit} of {len(split.images)} images, evenly chosen, so that a demo stays a demo")
        # Images without objects would only make the demo longer.
        candidates = [image for image in split.images if image.instances] or split.images
        step = max(1.0, len(candidates) / limit)
        split.images = [candidates[int(i * step)] for i in range(min(limit, len(candidates)))]
        path = work / f"instances_{name}.json"
        _write_shortened(locations[name].json_path, {image.id for image in split.images}, path)
        locations[name] = Location(path, locations[name].image_dir)
    return DemoFolder(locations, splits, notes)


def _write_shortened(source: Path, ids: set[Any], path: Path) -> None:
    from pretrain.training.run_folder import write_json

    content = json.loads(source.read_text(encoding="utf-8-sig"))
    images = [image for image in content["images"] if image["id"] in ids]
    annotations = [a for a in content["annotations"] if isinstance(a, dict) and a.get("image_id") in ids]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"images": images, "annotations": annotations, "categories": content["categories"]})


def why_no_segmentation(folder: DemoFolder) -> str | None:
    """Returns why labels cannot be made from the instance masks, or None if they can."""
    count = len(folder.splits["train"].categories)
    what = f"the data has {count} categories, and label images hold at most {MAX_CLASSES} beside the background"
    return what if count > MAX_CLASSES else None


def write_segmentation(folder: DemoFolder, root: Path) -> Path:
    """Returns `root` with `images/{train,val}`, `annotations/{train,val}` and classes.json, made from instance masks.

    A pixel gets the class of the smallest instance on it, 0 where there is none, 255 in crowds. Images are shrunk to a
    short side of 160 pixels. Images that cannot be read or have another size than annotated are left out: the
    detector's step has named them. The folder appears at once, when all of it is written.
    """
    from PIL import Image

    from pretrain.data.decode import UnreadableImage, read_image

    if root.exists():
        return root
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, split in folder.splits.items():
        images, labels = partial / "images" / name, partial / "annotations" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index, record in enumerate(split.images):
            try:
                picture = read_image(split.image_dir / record.file_name)
            except (UnreadableImage, OSError):
                continue
            if (picture.height, picture.width) != (record.height, record.width):
                continue
            scale = min(1.0, SHORT_SIDE / min(picture.size))
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            label = Image.fromarray(label_of(record)).resize(size, Image.Resampling.NEAREST)
            picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).save(
                images / f"{index:06d}.jpg", quality=95
            )
            label.save(labels / f"{index:06d}.png")
    classes = {"classes": class_names([name for _, name in folder.splits["train"].categories])}
    (partial / "classes.json").write_text(json.dumps(classes) + "\n", encoding="utf-8")
    os.replace(partial, root)
    return root


def label_of(record: ImageRecord) -> np.ndarray:
    """Returns the semantic labels of an image, uint8 (H, W): class index + 1, 0 for background, 255 in crowds."""
    import numpy as np

    from tools.detection.rle import to_mask

    label = np.zeros((record.height, record.width), np.uint8)
    # Crowds first, then from large to small: what lies on top is usually the smaller one.
    for instance in sorted(record.instances, key=lambda i: (not i.crowd, -i.area)):
        mask = to_mask(instance.segmentation, record.height, record.width).astype(bool)
        label[mask] = IGNORE if instance.crowd else instance.label + 1
    return label


def class_names(categories: list[str]) -> list[str]:
    """Returns "background" and the categories, each name once: a second one gets its number."""
    names = ["background"]
    for index, name in enumerate(categories, start=1):
        name = name or "unnamed"
        names.append(name if name not in names else f"{name} ({index})")
    return names
