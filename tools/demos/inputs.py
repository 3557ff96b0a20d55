"""The images of a demo as argv of the tools: synthetic ones, or at most so many of your own COCO-layout folder.

Labels for segmentation are made from the folder's instance masks.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pretrain.data.decode import UnreadableImage
from pretrain.data.deep_images import choose_range
from pretrain.recipes import get_recipe
from pretrain.training.run_folder import read_object, write_json
from splitmask_backbones.errors import UserError
from tools.demo_data import make_demo_data
from tools.detection import config as det_config
from tools.detection.coco import CocoSplit, image_ids
from tools.detection.records import ImageRecord
from tools.detection.rle import to_mask
from tools.detection.splits import Location, fingerprint, locate, read_splits
from tools.segmentation import config as seg_config

NUM_PICTURES = 6
NUM_TOKEN_IMAGES = 256
MAX_IMAGES = {"train": 2000, "val": 200}  # what a demo on two cores can read; more is for the tools themselves
SHORT_SIDE = 160  # pixels of the segmentation images, about that of the synthetic ones
MAX_CLASSES = 253  # labels are bytes: 0 is background, 254 spare, 255 means "ignore"
IGNORE = 255
RECORD = "source.json"


@dataclass(frozen=True)
class Inputs:
    """What the jobs are given.

    Attributes:
        pretrain: argv of tools/pretrain.py that names the images.
        detection: argv of tools/train_det.py that names the data.
        segmentation: folder with images/ and annotations/, or None.
        pictures: files of the validation split to look at.
        token_images: files to show the codebook on.
        note: why there is no segmentation, or None.
        heads: further argv of "det" and "seg", where there are too few images for their batches.
    """

    pretrain: list[str]
    detection: list[str]
    segmentation: Path | None
    pictures: list[Path]
    token_images: list[Path]
    note: str | None = None
    heads: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoFolder:
    """Annotations and image folders that the jobs are given, and what was left out, in words."""

    locations: dict[str, Location]
    splits: dict[str, CocoSplit]
    notes: list[str]


def make_inputs(root: Path) -> Inputs:
    """Returns synthetic images, made in `root` unless they are there."""
    sys.stdout.write(f"images: {root}\n")
    sys.stdout.flush()
    make_demo_data(root)
    return Inputs(
        ["--data", str(root / "unlabelled")],
        ["--data", str(root / "coco")],
        root / "seg",
        sorted((root / "coco" / "val").iterdir())[:NUM_PICTURES],
        sorted((root / "unlabelled").iterdir())[:NUM_TOKEN_IMAGES],
    )


def own_inputs(found: DemoFolder, work: Path) -> Inputs:
    """Returns the images of a COCO-layout folder; what has to be made from them goes into `work`."""
    for note in found.notes:
        sys.stdout.write(f"{note}\n")
    reason = why_no_segmentation(found)
    train, val = found.locations["train"], found.locations["val"]
    return Inputs(
        ["--data", str(train.json_path), "--images", str(train.image_dir)]
        + _small_data(len(found.splits["train"].images)),
        ["--train-json", str(train.json_path), "--train-images", str(train.image_dir)]
        + ["--val-json", str(val.json_path), "--val-images", str(val.image_dir)],
        None if reason is not None else write_segmentation(found, work / "seg"),
        _readable(found.splits["val"], NUM_PICTURES),
        _readable(found.splits["train"], NUM_TOKEN_IMAGES),
        None if reason is None else f"no segmentation: {reason}",
        {head: _small_batch(head, len(found.splits["train"].images)) for head in ("det", "seg")},
    )


def _small_batch(head: str, num_images: int) -> list[str]:
    """Returns the option that lets the demo's detector or segmentor train on fewer images than its batch has."""
    if head == "det":
        batch_size = det_config.load_config("demo").batch_size
    else:
        batch_size = seg_config.load_config(seg_config.config_path("demo"))["batch_size"]
    return ["--batch-size", str(num_images)] if 2 <= num_images < batch_size else []


def _readable(split: CocoSplit, count: int) -> list[Path]:
    """Returns the first `count` images of a split that can be read."""
    images = split.image_list()
    readable = (images.path(name) for index, name in enumerate(images.names) if images.is_readable(index))
    return list(islice(readable, count))


def _small_data(num_images: int) -> list[str]:
    """Returns the options that let the demo's recipe run on fewer images than it is made for."""
    recipe = get_recipe("demo")
    num_patches = num_images * (recipe.img_size // recipe.encoder_sizes["patch_size"]) ** 2
    options = []
    if 2 <= num_images < recipe.batch_size:
        options += ["--batch-size", str(num_images)]
    if 2 <= num_patches < recipe.vocab_size:
        options += ["--vocab-size", str(num_patches)]
    return options


def open_folder(data: str, work: Path) -> DemoFolder:
    """Returns the checked annotations of a COCO-layout folder, with every n-th image where there are too many.

    Shortened annotation files go into `work`, which is not made unless there is one.

    Raises:
        ValueError: the folder or its files cannot be used.
    """
    locations = locate(data)
    splits = read_splits(locations)
    notes = []
    for name, split in splits.items():
        limit = MAX_IMAGES[name]
        if len(split.images) <= limit:
            continue
        notes.append(f"{name}: {limit} of {len(split.images)} images, evenly chosen, so that a demo stays a demo")
        # Images without objects are not trained on, and would only make the demo longer; in val, what is found there
        # counts against a detector.
        with_objects = [image for image in split.images if image.instances]
        candidates = (name == "train" and with_objects) or split.images
        step = max(1.0, len(candidates) / limit)
        split.images = [candidates[int(i * step)] for i in range(min(limit, len(candidates)))]
        path = work / f"instances_{name}.json"
        _write_shortened(locations[name].json_path, {image.id for image in split.images}, path)
        locations[name] = Location(path, locations[name].image_dir)
    return DemoFolder(locations, splits, notes)


def _write_shortened(source: Path, ids: set[Any], path: Path) -> None:
    content = json.loads(source.read_text(encoding="utf-8-sig"))
    images = [image for image in content["images"] if image["id"] in ids]
    of_images = zip(content["annotations"], image_ids(content), strict=True)
    annotations = [annotation for annotation, image_id in of_images if image_id in ids]
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
    made_from = {name: fingerprint(split) for name, split in folder.splits.items()}
    if root.exists():
        if (root / RECORD).exists() and read_object(root / RECORD) != made_from:
            raise UserError(
                f"{root} was made from other images or annotations: remove {root.parent.parent}, or name "
                "another --output"
            )
        return root
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    value_range = choose_range(folder.splits["train"].image_list())  # as the other tools: of the training images
    for name, split in folder.splits.items():
        split.value_range = value_range
        images, labels = partial / "images" / name, partial / "annotations" / name
        images.mkdir(parents=True)
        source = split.image_list()
        labels.mkdir(parents=True)
        for index, record in enumerate(split.images):
            try:
                picture = source.decode(index)
            except (UnreadableImage, OSError):
                continue
            if (picture.height, picture.width) != (record.height, record.width):
                continue
            scale = min(1.0, SHORT_SIDE / min(picture.size))
            size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
            label = Image.fromarray(label_of(record)).resize(size, Image.Resampling.NEAREST)
            shrunk = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
            shrunk.save(images / f"{index:06d}.jpg", quality=95)
            label.save(labels / f"{index:06d}.png")
    classes = {"classes": class_names([name for _, name in folder.splits["train"].categories])}
    (partial / "classes.json").write_text(json.dumps(classes) + "\n", encoding="utf-8")
    write_json(partial / RECORD, made_from)
    os.replace(partial, root)
    return root


def label_of(record: ImageRecord) -> np.ndarray:
    """Returns the semantic labels of an image, uint8 (H, W): class index + 1, 0 for background, 255 in crowds."""
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
