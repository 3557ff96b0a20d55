"""Makes the demo's images: coins with handwritten digits, with instance masks (COCO layout) and semantic labels.

All coins are alike but for the digit, which is the class: finding one is easy, and telling it from the others takes all
of it, not a patch. There are many images without a label and few with, and the digits to evaluate on are none of the
others.
"""

from __future__ import annotations

import _path  # noqa: F401
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError
from tools import cli

if TYPE_CHECKING:
    from tools.demos.scenes import Coin

CLASSES = ("zero", "one", "two", "three", "four")
PALETTE = ((40, 40, 48), (230, 90, 70), (70, 150, 230), (245, 190, 60), (120, 200, 110), (180, 110, 220))
SPLITS = ("train", "val", "unlabelled")
RECORD = "demo_data.json"


@dataclass(frozen=True)
class DemoData:
    """What decides every byte of the pictures and annotations."""

    num_train: int = 60
    num_val: int = 80
    num_unlabelled: int = 1500
    img_size: int = 160
    seed: int = 0
    version: int = 2  # of the pictures: another number makes an older folder unusable for a newer demo


DEFAULT = DemoData()


def make_demo_data(root: str | Path, wanted: DemoData = DEFAULT) -> Path:
    """Returns `root` with the demo's data in it; made anew only if it is not there.

    Layout: `coco/{train,val}/*.jpg` with `coco/annotations/instances_{train,val}.json`; the same images as
    `seg/images/{train,val}` with palette PNGs `seg/annotations/{train,val}` (0 = background, 1..5 = `CLASSES`) and
    `seg/classes.json`; `unlabelled/*.jpg`. The folder appears at once, when all of it is written.

    Raises:
        ValueError: `root` holds something else.
    """
    root = Path(root)
    if read_object(root / RECORD) == asdict(wanted):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something else than this demo's images: remove it, or choose another folder")
    if root.resolve() == Path.cwd():
        raise UserError(f"{root} is the folder that you are in, and is to be replaced as a whole: name one in it")
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split in SPLITS:
        _write_split(partial, split, wanted)
    names = {"classes": ["background", *CLASSES], "palette": [list(colour) for colour in PALETTE]}
    _write_json(partial / "seg" / "classes.json", names)
    _write_json(partial / RECORD, asdict(wanted))
    if root.exists():
        root.rmdir()
    os.replace(partial, root)
    return root


def _write_split(root: Path, split: str, data: DemoData) -> None:
    import numpy as np
    from PIL import Image

    from tools.demos.scenes import draw_scene

    labelled = split != "unlabelled"
    folder = root / "coco" / split if labelled else root / split
    seg_images, seg_labels = root / "seg" / "images" / split, root / "seg" / "annotations" / split
    for made in (folder, seg_images, seg_labels) if labelled else (folder,):
        made.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(getattr(data, f"num_{split}")):
        # Seeded one by one: picture 7 is the same however many there are.
        rng = np.random.default_rng([data.seed, SPLITS.index(split), index])
        pixels, coins = draw_scene(data.img_size, split == "val", rng)
        name = f"{index:06d}"
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
        if not labelled:
            continue
        shutil.copyfile(folder / f"{name}.jpg", seg_images / f"{name}.jpg")
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for coin in coins:
            labels[coin.mask] = coin.kind + 1
            annotations.append(_annotation(len(annotations) + 1, index + 1, coin))
        picture = Image.fromarray(labels, mode="P")
        picture.putpalette([value for colour in PALETTE for value in colour])
        picture.save(seg_labels / f"{name}.png")
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": data.img_size, "width": data.img_size})
    if labelled:
        categories = [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES)]
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        _write_json(
            root / "coco" / "annotations" / f"instances_{split}.json",
            {"info": {"description": "Coins with handwritten digits, made by tools/demo_data.py"}, "licenses": []}
            | {"images": images, "annotations": annotations, "categories": categories},
        )


def _annotation(number: int, image: int, coin: Coin) -> dict[str, Any]:
    """Returns the COCO annotation `number` of an image: a polygon where the whole outline is visible, else an RLE."""
    import numpy as np
    from pycocotools import mask as coco_mask

    from tools.detection.rle import to_json

    rle = coco_mask.encode(np.asfortranarray(coin.mask.astype(np.uint8)))
    segmentation: Any
    if coin.outline is None:
        segmentation = to_json(rle)
    else:
        segmentation = [[round(float(value), 2) for value in coin.outline.reshape(-1)]]
    return {
        "id": number,
        "image_id": image,
        "category_id": coin.kind + 1,
        "iscrowd": 0,
        "area": int(coin.mask.sum()),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "segmentation": segmentation,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/demo_data.py", description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    for name, value, unit, about in (
        ("train", DEFAULT.num_train, "N", "labelled images to train on"),
        ("val", DEFAULT.num_val, "N", "labelled images to evaluate on"),
        ("unlabelled", DEFAULT.num_unlabelled, "N", "images without labels, for pre-training"),
        ("img-size", DEFAULT.img_size, "P", "side in pixels, at least 64"),
    ):
        text = f"{about} (default {value})"
        parser.add_argument(f"--{name}", type=cli.positive_int, default=value, metavar=unit, help=text)
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="N", help="default 0")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.img_size < 64:
        raise UserError(f"--img-size {args.img_size} is too small for coins: use 64 or more")
    root = make_demo_data(args.output, DemoData(args.train, args.val, args.unlabelled, args.img_size, args.seed))
    print(f"{root}: {args.train} + {args.val} labelled images, {args.unlabelled} without labels")
    return 0


if __name__ == "__main__":
    cli.run(main)
