"""COCO's run-length masks: checked before C code decodes them, which trusts its input."""

from typing import Any

import numpy as np


def parse_counts(counts: Any) -> list[int] | None:
    """Returns the run lengths of an RLE's `counts` (a list, or COCO's compressed string), or None if it is broken."""
    if isinstance(counts, list):
        return counts if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts) else None
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if not isinstance(counts, str):
        return None
    runs: list[int] = []
    number, shift = 0, 0
    # As rleFrString: 5 bits a character, bit 6 says that more follow, bit 5 of the last is the sign.
    for char in counts:
        code = ord(char) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        number |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            number -= 1 << shift
        if len(runs) > 2:  # from the fourth run on, differences to the run before the last
            number += runs[-2]
        if number < 0:
            return None
        runs.append(number)
        number, shift = 0, 0
    return runs if shift == 0 else None


def rle_flaw(segmentation: dict[str, Any], height: int, width: int) -> str | None:
    """Returns the flaw of an RLE for an image of `height x width`: a kind of `coco.Flaws`, or None."""
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        return "wrong RLE size"
    runs = parse_counts(segmentation.get("counts"))
    if runs is None or sum(runs) != height * width:
        return "broken RLE"
    return None if sum(runs[1::2]) else "no area"


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
