"""COCO's run-length masks: checked before C code decodes them, which trusts its input; decoded a part at a time."""

from typing import Any

import numpy as np

_LONGEST = 2**40  # pixels: no image has so many, and sums of such runs fit an int64


def to_json(rle: Any) -> dict[str, Any]:
    """Returns an RLE of COCO's C code as JSON holds it."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def parse_counts(counts: Any) -> np.ndarray | None:
    """Returns the run lengths of an RLE's `counts` (a list, or COCO's compressed string), or None if it is broken.

    Returns:
        int64 `(N,)`, of zeros and ones in turn, column by column.
    """
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or not counts:
            return None
        return np.array(counts, np.int64) if min(counts) >= 0 and max(counts) < _LONGEST else None
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if not isinstance(counts, bytes) or not counts:
        return None
    # As rleFrString: 5 bits a character, bit 6 says that more follow, bit 5 of the last is the sign.
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    is_last = (codes & 0x20) == 0
    if codes.min() < 0 or codes.max() >= 64 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 0x1F) << shifts, starts)
    runs -= np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    # From the fourth run on, differences to the run before the last.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs if runs.min() >= 0 and runs.max() < _LONGEST else None


def rle_flaw(segmentation: dict[str, Any], height: int, width: int) -> str | None:
    """Returns the flaw of an RLE for an image of `height x width`: a kind of `records.Flaws`, or None."""
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        return "wrong RLE size"
    runs = parse_counts(segmentation.get("counts"))
    if runs is None or runs.sum() != height * width:
        return "broken RLE"
    return None if runs[1::2].any() else "no area"


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Returns checked polygons or an RLE as one compressed RLE."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Returns the mask of checked polygons or an RLE, uint8 `(H, W)` in {0, 1}."""
    from pycocotools import mask as coco_mask

    return coco_mask.decode(to_rle(segmentation, height, width))


def extent(rle: dict[str, Any]) -> tuple[int, int, int, int]:
    """Returns the box x1, y1, x2, y2 around the pixels of a compressed RLE; zeros for none."""
    from pycocotools import mask as coco_mask

    x, y, width, height = (int(number) for number in coco_mask.toBbox(rle))
    return (x, y, x + width, y + height) if width and height else (0, 0, 0, 0)


def decode_window(rle: dict[str, Any], window: tuple[int, int, int, int]) -> np.ndarray:
    """Returns the part of a checked RLE within `window` (x1, y1, x2, y2), uint8 `(H, W)` in {0, 1}.

    Its columns alone are written out: a small object in a large image costs what its size asks for.
    """
    x1, y1, x2, y2 = window
    height = int(rle["size"][0])  # 480.0 is taken
    runs = parse_counts(rle["counts"])
    assert runs is not None
    first, last = x1 * height, x2 * height
    ends = np.clip(np.cumsum(runs), first, last)
    lengths = np.diff(ends, prepend=first)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, lengths).reshape(x2 - x1, height)[:, y1:y2].T
