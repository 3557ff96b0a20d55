"""Small COCO data sets for the detection tests: bright boxes on dark ground, made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def coco_json(num_images: int = 6, seed: int = 0, size: tuple[int, int] = (48, 64)) -> dict[str, Any]:
    """Returns a COCO dictionary of two classes with gaps in their ids; image i has 1 + i % 3 boxes."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(num_images):
        images.append({"id": 10 + i, "file_name": f"{i:03d}.png", "height": size[0], "width": size[1]})
        for _ in range(1 + i % 3):
            w, h = (int(n) for n in rng.integers(10, 24, 2))
            x, y = int(rng.integers(0, size[1] - w)), int(rng.integers(0, size[0] - h))
            annotations.append(
                {
                    "id": len(annotations) + 100,
                    "image_id": 10 + i,
                    "category_id": (3, 7)[len(annotations) % 2],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, name: str, content: dict[str, Any], seed: int = 0) -> None:
    """Writes ROOT/name/*.png and ROOT/annotations/instances_name.json."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for image in content["images"]:
        pixels = rng.integers(0, 60, (image["height"], image["width"], 3), dtype=np.uint8)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = (int(n) for n in annotation["bbox"])
                pixels[y : y + h, x : x + w, annotation["category_id"] % 3] += 150
        Image.fromarray(pixels).save(folder / image["file_name"])
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def write_root(root: Path) -> Path:
    """Writes a train and a val split below `root` and returns it."""
    write_split(root, "train", coco_json(6, seed=0), seed=0)
    write_split(root, "val", coco_json(3, seed=1), seed=1)
    return root
