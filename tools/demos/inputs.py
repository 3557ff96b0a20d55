"""The images of a demo: synthetic ones, or your own COCO-layout folder, as argv of the tools."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.decode import UnreadableImage, read_image
from pretrain.recipes import get_recipe
from splitmask_backbones.registry import ENCODERS
from tools.demo_data import make_demo_data
from tools.demos.folder import DemoFolder, why_no_segmentation, write_segmentation
from tools.detection.coco import CocoSplit

NUM_PICTURES = 6
NUM_TOKEN_IMAGES = 256


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
    """

    pretrain: list[str]
    detection: list[str]
    segmentation: Path | None
    pictures: list[Path]
    token_images: list[Path]
    note: str | None = None


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
    )


def _readable(split: CocoSplit, count: int) -> list[Path]:
    """Returns the first `count` images of a split that can be read."""
    files: list[Path] = []
    for image in split.images:
        if len(files) == count:
            break
        path = split.image_dir / image.file_name
        try:
            read_image(path)
        except (UnreadableImage, OSError):
            continue
        files.append(path)
    return files


def _small_data(num_images: int) -> list[str]:
    """Returns the options that let the demo's recipe run on fewer images than it is made for."""
    recipe = get_recipe("demo")
    num_patches = num_images * (recipe.img_size // ENCODERS[recipe.model]["patch_size"]) ** 2
    options = []
    if 2 <= num_images < recipe.batch_size:
        options += ["--batch-size", str(num_images)]
    if 2 <= num_patches < recipe.vocab_size:
        options += ["--vocab-size", str(num_patches)]
    return options
