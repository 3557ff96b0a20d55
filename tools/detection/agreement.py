"""Compares box, mask, crowd flag and the target that comes out of them, before the first step.

A file can be valid and mean something else: boxes by their corners, coordinates in 0..1, every object marked as a
crowd. It trains to an AP of 0, or is measured against wrong boxes. One number for each object is computed here from the
annotations alone; only objects near the limit are drawn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from det_configs.common.recipe import DetRecipe
from splitmask_backbones.errors import UserError
from tools.detection.annotations import shoelace
from tools.detection.coco import CocoSplit, without_collector
from tools.detection.records import Flaws, ImageRecord, Instance
from tools.detection.rle import extent, to_rle
from tools.detection.targets import place
from tools.detection.transforms import evaluation_placement

LEAST_IOU, ROUNDING = 0.5, 2.0
"""A box and the extent of its mask do not fit below this IoU, unless no side differs by more than so many pixels."""
MOST = 0.5
"""Share of the objects above which a doubt is an error."""
FITS = 0.9
"""Share of the objects that another way to read their boxes must fit, to be named."""
CROWDS = 0.1
"""Share of crowds that is worth a word; COCO has 1 %."""
OUTSIDE = 0.05
"""Share of boxes without masks that reach out of their image, from which on other ways to read them are tried."""

SHARE_OUTSIDE = 0.15
"""Share of their sides by which they do so in the median; with the centre in place of a corner it is a quarter."""


@dataclass
class Objects:
    """The objects of a split as columns, one row each, in order.

    Attributes:
        instances, records: what they are, and of which image.
        sides: width and height of the image, pixels `(N, 2)`.
        boxes: x1, y1, x2, y2 within the image `(N, 4)`.
        given: x, y, width, height as they were read `(N, 4)`.
        extents: box around the mask, NaN without one `(N, 4)`.
        areas: pixels of the mask, NaN without one `(N,)`.
        crowd: bool `(N,)`.
    """

    instances: list[Instance]
    records: list[ImageRecord]
    sides: np.ndarray
    boxes: np.ndarray
    given: np.ndarray
    extents: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, split: CocoSplit) -> "Objects":
        """Returns those of a split; RLEs are looked into by COCO's code, polygons by their corners."""
        instances = [instance for record in split.images for instance in record.instances]
        records = [record for record in split.images for _ in record.instances]
        measured = _columns(map(_measure, instances, records), 5)
        sides = _columns(((record.width, record.height) for record in records), 2)
        measured[:, :4] = np.clip(measured[:, :4], 0, np.tile(sides, 2))
        whole = _columns((instance.whole or instance.box for instance in instances), 4)
        return cls(
            instances,
            records,
            sides,
            _columns((instance.box for instance in instances), 4),
            np.concatenate([whole[:, :2], whole[:, 2:] - whole[:, :2]], axis=1),
            measured[:, :4],
            measured[:, 4],
            np.array([instance.crowd for instance in instances], bool),
        )


def _columns(rows: Iterable[tuple[float, ...]], width: int) -> np.ndarray:
    """Returns rows of numbers, float64 `(N, width)`; many times faster than NumPy's array of tuples."""
    return np.fromiter(chain.from_iterable(rows), float).reshape(-1, width)


def _measure(instance: Instance, record: ImageRecord) -> tuple[float, ...]:
    """Returns x1, y1, x2, y2 and the area of an object's mask, NaN without one."""
    segmentation = instance.segmentation
    if segmentation is None:
        return (float("nan"),) * 5
    if isinstance(segmentation, dict):
        from pycocotools import mask as coco_mask

        rle = to_rle(segmentation, record.height, record.width)
        return (*extent(rle), float(coco_mask.area(rle)))
    corners = segmentation[0] if len(segmentation) == 1 else list(chain(*segmentation))
    xs, ys = corners[0::2], corners[1::2]
    area = shoelace(xs, ys) if len(segmentation) == 1 else sum(shoelace(p[0::2], p[1::2]) for p in segmentation)
    return min(xs), min(ys), max(xs), max(ys), area


def compare(split: CocoSplit, recipe: DetRecipe) -> Flaws:
    """Returns the doubtful objects of a split by kind, crowds aside.

    Raises:
        ValueError: most objects are too small to be a target, or have a box that does not fit their mask or image.
    """
    with without_collector():
        objects, doubts = Objects.of(split), Flaws()
    _compare_boxes(objects, split, recipe.masks, doubts)
    _count_targets(objects, split, recipe, doubts)
    single = int((~objects.crowd).sum())
    if objects.crowd.sum() > CROWDS * len(objects.crowd):
        kind = f"marked as a crowd (iscrowd=1) beside {single} that are not: no crowd is trained on"
        _note(doubts, kind, objects, objects.crowd)
    _note(doubts, "the same image, class and box as one before", objects, _repeated(objects))
    width, height = (objects.boxes[:, 2:] - objects.boxes[:, :2]).T
    areas = np.array([instance.area for instance in objects.instances])
    with np.errstate(invalid="ignore"):
        wrong = (areas > 2 * width * height + 10) | (10 * areas + 10 < objects.areas)
    kind = "an area that does not fit box and mask: APs, APm and APl go by it"
    _note(doubts, kind, objects, wrong & ~objects.crowd)
    return doubts


def _note(doubts: Flaws, kind: str, objects: Objects, chosen: np.ndarray) -> None:
    rows = np.flatnonzero(chosen)
    if rows.size:
        doubts.kinds[kind] = [int(rows.size), objects.instances[rows[0]].id]


def _repeated(objects: Objects) -> np.ndarray:
    """Returns whether an earlier object has the same image, class and box, bool `(N,)`."""
    numbers: dict[int, int] = {}
    images = [numbers.setdefault(id(record), len(numbers)) for record in objects.records]
    labels = [instance.label for instance in objects.instances]
    rows = np.column_stack([images, labels, objects.boxes, objects.crowd])
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _compare_boxes(objects: Objects, split: CocoSplit, with_masks: bool, doubts: Flaws) -> None:
    has_mask = ~np.isnan(objects.areas) & ~objects.crowd
    differ = has_mask & ~_fit(objects.boxes, objects.extents)
    _note(doubts, "a box that does not fit its mask (IoU below 0.5)", objects, differ)
    if differ.sum() > MOST * max(1, has_mask.sum()):
        row = int(np.flatnonzero(differ)[0])
        for name, boxes in _readings(objects).items():
            if _fit(boxes, objects.extents)[has_mask].mean() >= FITS:
                raise UserError(
                    f"{split.json_path}: {differ.sum()} of {has_mask.sum()} boxes do not fit their masks, but do as "
                    f"{name} ({_shown(objects, row)}): write them as x, y, width, height in pixels, as COCO does"
                )
        if with_masks:
            raise UserError(
                f"{split.json_path}: {differ.sum()} of {has_mask.sum()} boxes do not fit their masks "
                f"({_shown(objects, row)}, the mask reaches from {_corners(objects.extents[row])}): correct one of "
                "them; masks=false trains on the boxes alone"
            )
    no_mask = np.isnan(objects.areas)
    beyond = objects.given[:, :2] + objects.given[:, 2:] - objects.sides  # right and below
    outside = (beyond > 1).any(axis=1)
    if no_mask.any() and outside[no_mask].mean() > OUTSIDE:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = (beyond / objects.given[:, 2:]).max(axis=1)[no_mask & outside]
        if not np.median(shares) >= SHARE_OUTSIDE:  # drawn a little too large
            return
        for name, boxes in _readings(objects, relative=False).items():
            low, high = boxes[:, :2], boxes[:, 2:]
            inside = np.concatenate([low >= -1, high <= objects.sides + 1, high > low], axis=1)
            if np.all(inside[no_mask], axis=1).mean() >= 0.99:
                row = int(np.flatnonzero(no_mask & outside)[0])
                raise UserError(
                    f"{split.json_path}: {(no_mask & outside).sum()} of {no_mask.sum()} boxes reach out of their "
                    f"image, but none does as {name} ({_shown(objects, row)}): write them as x, y, width, height in "
                    "pixels, as COCO does"
                )


def _fit(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Returns whether boxes and the extents of masks `(N, 4)` are about the same, bool `(N,)`."""
    low, high = np.maximum(boxes[:, :2], extents[:, :2]), np.minimum(boxes[:, 2:], extents[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = sum(np.clip(part[:, 2:] - part[:, :2], 0, None).prod(axis=1) for part in (boxes, extents)) - common
    with np.errstate(invalid="ignore"):
        is_near = (np.abs(boxes - extents) <= ROUNDING).all(axis=1)
        return np.asarray((common > LEAST_IOU * union) | is_near)


def _readings(objects: Objects, relative: bool = True) -> dict[str, np.ndarray]:
    """Returns x1, y1, x2, y2 by the name of each other way to read the four numbers of the boxes."""
    a, b, c, d = objects.given.T
    width, height = objects.sides.T
    readings = {
        "x1, y1, x2, y2": (a, b, c, d),
        "y1, x1, y2, x2": (b, a, d, c),
        "centre x, centre y, width, height": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        "y, x, height, width": (b, a, b + d, a + c),
    }
    if relative:
        x, y, w, h = a * width, b * height, c * width, d * height
        readings["shares (0..1) of the image"] = (x, y, x + w, y + h)
        readings["centre and size as shares (0..1) of the image"] = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return {name: np.column_stack(corners) for name, corners in readings.items()}


def _count_targets(objects: Objects, split: CocoSplit, recipe: DetRecipe, doubts: Flaws) -> None:
    """Counts the single objects that are no target at the recipe's size, as training makes it at factor 1."""
    placements: dict[tuple[int, int], Any] = {}
    for record in split.images:
        size = (record.height, record.width)
        if size not in placements:
            placements[size] = evaluation_placement(recipe, size)
    placed = [placements[record.height, record.width] for record in objects.records]
    scaled = np.array([p.scaled_size[::-1] for p in placed], float).reshape(-1, 2)
    factors = scaled / objects.sides
    if recipe.masks:
        sides = (objects.extents[:, 2:] - objects.extents[:, :2]) * factors
        # An outline about as large as its area asks for holds the centre of a pixel; the others are drawn.
        near = (sides.min(axis=1) < 2) | (objects.areas * factors.prod(axis=1) < 2 * sides.sum(axis=1))
        gone = np.zeros(len(near), bool)
        for row in np.flatnonzero(near & ~objects.crowd):
            gone[row] = place(objects.instances[row], placed[row]) is None
    else:
        gone = ((objects.boxes[:, 2:] - objects.boxes[:, :2]) * factors).prod(axis=1) < 1
    # Within the image's first pixel an outline may still hold its centre; it is one in shares of the image.
    gone |= (objects.boxes <= 1).all(axis=1)
    gone &= ~objects.crowd
    _note(doubts, f"less than a pixel at --img-size {recipe.img_size}: no target", objects, gone)
    single = int((~objects.crowd).sum())
    if gone.sum() <= MOST * single:
        return
    if (objects.boxes[gone] <= 1).all(axis=1).mean() > MOST:
        remedy = "the coordinates are shares (0..1): multiply them by width and height, COCO's are pixels"
    else:
        remedy = "correct the annotations, or use a larger --img-size"
    raise UserError(
        f"{split.json_path}: {gone.sum()} of {single} objects are less than a pixel at --img-size {recipe.img_size} "
        f"({_shown(objects, int(np.flatnonzero(gone)[0]))}): {remedy}"
    )


def _shown(objects: Objects, row: int) -> str:
    """Returns an object as an error shows it."""
    record, numbers = objects.records[row], ", ".join(f"{number:.5g}" for number in objects.given[row])
    return f"id {objects.instances[row].id}: box {numbers} in {record.file_name}, {record.width} x {record.height}"


def _corners(box: np.ndarray) -> str:
    x1, y1, x2, y2 = (f"{number:.5g}" for number in box)
    return f"{x1}, {y1} to {x2}, {y2}"
