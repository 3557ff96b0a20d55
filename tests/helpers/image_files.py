"""Image files, and files that only look like them."""

import json
import os
from pathlib import Path

import numpy as np


def smooth(height: int = 24, width: int = 40) -> np.ndarray:
    """A colour image that survives JPEG: gradients, another one in each channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 255 * (x + y) / (height + width)], -1).astype(np.uint8)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content of " + os.fsencode(name))


def write_coco(path: Path, *file_names: object) -> Path:
    path.write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in enumerate(file_names)]}))
    return path
