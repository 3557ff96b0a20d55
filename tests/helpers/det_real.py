"""A few real COCO images as a root of their own, and answers to them that lie near the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.detection.coco import CocoSplit
from tools.detection.rle import to_mask

WITH_CROWD = "000000204805.jpg"


def write_real_root(shared_data: Path, root: Path, num_easy: int, num_val: int) -> Path:
    """Writes coco_tiny's first images with at most 6 objects below `root`, and returns it.

    train: `num_easy` of them. val: the same, the ones that follow up to `num_val`, and one with a crowd.
    """
    source = shared_data / "coco_tiny"
    content = json.loads((source / "annotations/instances_train2017.json").read_text())
    of_image: dict[int, list[dict[str, object]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    easy = [
        image for image in content["images"]
        if 1 <= len(of_image[image["id"]]) <= 6 and not any(a["iscrowd"] for a in of_image[image["id"]])
    ]  # fmt: skip
    crowded = [image for image in content["images"] if image["file_name"] == WITH_CROWD]
    (root / "annotations").mkdir(parents=True)
    for name, images in (("train", easy[:num_easy]), ("val", easy[:num_val] + crowded)):
        (root / name).mkdir()
        for image in images:
            shutil.copy(source / "train2017" / image["file_name"], root / name)
        annotations = [annotation for image in images for annotation in of_image[image["id"]]]
        chosen = {"images": images, "annotations": annotations, "categories": content["categories"]}
        (root / f"annotations/instances_{name}.json").write_text(json.dumps({"info": {}, **chosen}))
    return root


class NearTruth:
    """What a good network might answer: boxes a little off, some labels wrong, some boxes on nothing, one empty.

    It sees the pixels alone, and knows the image by its mean colour.
    """

    def __init__(self, split: CocoSplit) -> None:
        images = split.image_list()
        self.records = split.images
        self.colours = np.stack([np.asarray(images.read(i)).mean(axis=(0, 1)) for i in range(len(split.images))])

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns boxes `(N, 4)`, labels from 0, scores and masks `(N, 1, 28, 28)` for `(3, h, w)` in [0, 255]."""
        distance = np.linalg.norm(self.colours - pixels.mean(dim=(1, 2)).cpu().numpy(), axis=1)
        record, (height, width) = self.records[int(distance.argmin())], pixels.shape[1:]
        rng = np.random.default_rng(record.id)
        boxes, labels, masks = [], [], []
        for instance in record.instances:
            x1, y1, x2, y2 = instance.box
            moved = np.array(instance.box) + rng.normal(0, 0.04, 4) * [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
            boxes.append(np.clip(moved, 0, (record.width, record.height) * 2))
            labels.append(instance.label if rng.random() < 0.85 else int(rng.integers(80)))
            masks.append(within(to_mask(instance.segmentation, record.height, record.width), boxes[-1], rng))
        for _ in range(4):  # on nothing, with the labels of things that are there
            corners = rng.uniform(0, (record.width, record.height), (2, 2))
            boxes.append(np.concatenate([corners.min(axis=0), corners.max(axis=0)]))
            labels.append(record.instances[0].label)
            masks.append(rng.random((28, 28)))
        boxes.append(np.array([5.0, 5.0, 5.0, 20.0]))
        labels.append(record.instances[0].label)
        masks.append(rng.random((28, 28)))
        scale = np.array([width / record.width, height / record.height] * 2)
        answers = (np.stack(boxes) * scale, np.array(labels), rng.random(len(boxes)), np.stack(masks)[:, None])
        found = [torch.from_numpy(part) for part in answers]
        return found[0].float(), found[1], found[2].float(), found[3].float()


def within(mask: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns noisy probabilities `(28, 28)` of a mask within a box."""
    places = (np.arange(28) + 0.5) / 28
    cols = np.clip(box[0] + places * (box[2] - box[0]), 0, mask.shape[1] - 1).astype(int)
    rows = np.clip(box[1] + places * (box[3] - box[1]), 0, mask.shape[0] - 1).astype(int)
    return np.clip(0.15 + 0.7 * mask[rows[:, None], cols] + rng.normal(0, 0.12, (28, 28)), 0, 1)
