"""Makes the demo's images: scenes of textured shapes, with instance masks (COCO layout) and semantic labels.

Colours tell nothing: every scene draws its own. What tells the classes apart is the shape and, in most cases, the
texture that goes with it, and both can be learned from images without a label.
"""

from __future__ import annotations

import _path  # noqa: F401
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitmask_backbones.errors import UserError
from tools import cli

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("disc", "box", "triangle", "star", "ring")
PALETTE = ((40, 40, 48), (230, 90, 70), (70, 150, 230), (245, 190, 60), (120, 200, 110), (180, 110, 220))
SPLITS = ("train", "val", "unlabelled")
RECORD = "demo_data.json"
VERSION = 1  # of the pictures: another number makes an older folder unusable for a newer demo


@dataclass(frozen=True)
class DemoData:
    """What decides every byte of the pictures and annotations."""

    num_train: int = 300
    num_val: int = 80
    num_unlabelled: int = 900
    img_size: int = 160
    seed: int = 0
    version: int = VERSION


def make_demo_data(
    root: str | Path,
    num_train: int = 300,
    num_val: int = 80,
    num_unlabelled: int = 900,
    seed: int = 0,
    img_size: int = 160,
) -> Path:
    """Returns `root` with the demo's data in it; made anew only if it is not there.

    Layout: `coco/{train,val}/*.jpg` with `coco/annotations/instances_{train,val}.json`; the same images as
    `seg/images/{train,val}` with palette PNGs `seg/annotations/{train,val}` (0 = background, 1..5 = `CLASSES`) and
    `seg/classes.json`; `unlabelled/*.jpg`. The folder appears at once, when all of it is written.

    Raises:
        ValueError: `root` holds something else.
    """
    root = Path(root)
    wanted = DemoData(num_train, num_val, num_unlabelled, img_size, seed)
    if (root / RECORD).is_file() and json.loads((root / RECORD).read_text(encoding="utf-8")) == asdict(wanted):
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something else than this demo's images: remove it, or choose another folder")
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, count in zip(SPLITS, (num_train, num_val, num_unlabelled), strict=True):
        _write_split(partial, split, count, wanted)
    names = {"classes": ["background", *CLASSES], "palette": [list(colour) for colour in PALETTE]}
    _write_json(partial / "seg" / "classes.json", names)
    _write_json(partial / RECORD, asdict(wanted))
    if root.exists():
        root.rmdir()
    os.replace(partial, root)
    return root


def _write_split(root: Path, split: str, count: int, data: DemoData) -> None:
    import numpy as np
    from PIL import Image

    from tools.demos.scenes import draw_scene

    folder = root / split if split == "unlabelled" else root / "coco" / split
    folder.mkdir(parents=True)
    labelled = split != "unlabelled"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    if labelled:
        (root / "seg" / "images" / split).mkdir(parents=True)
        (root / "seg" / "annotations" / split).mkdir(parents=True)
    for index in range(count):
        # Seeded one by one: picture 7 is the same however many there are.
        rng = np.random.default_rng([data.seed, SPLITS.index(split), index])
        pixels, shapes = draw_scene(data.img_size, len(CLASSES), rng)
        name = f"{index:06d}"
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
        if not labelled:
            continue
        shutil.copyfile(folder / f"{name}.jpg", root / "seg" / "images" / split / f"{name}.jpg")
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for shape in shapes:
            labels[shape.mask] = shape.kind + 1
            annotations.append(_annotation(len(annotations) + 1, index + 1, shape.kind + 1, shape.mask, shape.outline))
        picture = Image.fromarray(labels, mode="P")
        picture.putpalette([value for colour in PALETTE for value in colour])
        picture.save(root / "seg" / "annotations" / split / f"{name}.png")
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": data.img_size, "width": data.img_size})
    if labelled:
        categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        _write_json(
            root / "coco" / "annotations" / f"instances_{split}.json",
            {"info": {"description": "Scenes of textured shapes, made by tools/demo_data.py"}, "licenses": []}
            | {"images": images, "annotations": annotations, "categories": categories},
        )


def _annotation(number: int, image: int, category: int, mask: np.ndarray, outline: np.ndarray | None) -> dict[str, Any]:
    """Returns a COCO annotation: a polygon where the whole outline is visible, else (as for rings) a compressed RLE.

    Args:
        number: annotation id.
        image: image id.
        category: category id.
        mask: bool (H, W), the visible pixels.
        outline: float (N, 2) corners x, y in pixels, or None.
    """
    import numpy as np
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation: Any
    if outline is None:
        segmentation = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    else:
        segmentation = [[round(float(value), 2) for value in outline.reshape(-1)]]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "segmentation": segmentation,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def build_parser() -> cli.Parser:
    """Returns the parser."""
    default = DemoData()
    parser = cli.Parser(prog="tools/demo_data.py", description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    for name, value, about in (
        ("train", default.num_train, "labelled images to train on"),
        ("val", default.num_val, "labelled images to evaluate on"),
        ("unlabelled", default.num_unlabelled, "images without labels, for pre-training"),
    ):
        parser.add_argument(
            f"--{name}", type=cli.positive_int, default=value, metavar="N", help=f"{about} (default {value})"
        )
    parser.add_argument(
        "--img-size",
        type=cli.positive_int,
        default=default.img_size,
        metavar="P",
        help=f"side in pixels, at least 64 (default {default.img_size})",
    )
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="N", help="default 0")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.img_size < 64:
        raise UserError(f"--img-size {args.img_size} is too small for shapes: use 64 or more")
    root = make_demo_data(args.output, args.train, args.val, args.unlabelled, args.seed, args.img_size)
    print(f"{root}: {args.train} + {args.val} labelled images, {args.unlabelled} without labels")
    return 0


if __name__ == "__main__":
    cli.run(main)
