"""The numbers that a fine-tuning is judged by, out of its results.json. Free of torch."""

import json
import math
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import flatten
from splitmask_backbones.errors import UserError

SCORES = {
    "train_det": {"box AP": "bbox.AP", "mask AP": "segm.AP"},
    "train_seg": {"mIoU": "mIoU"},
    "train_cls": {"top-1": "top1"},
}
"""Tool -> title -> dotted name in its results.json; in percent."""


def read_scores(tool: str, file: Path) -> dict[str, float]:
    """Returns the scores in a results.json by their titles, without those that are undefined or that it lacks.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        found = flatten(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove its folder, and run the same command again") from None
    return {title: float(found[name]) for title, name in SCORES[tool].items() if is_number(found.get(name))}


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number: AP and mIoU of nothing are undefined."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
