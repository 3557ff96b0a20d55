"""Pairs of images and labels, as tools/train_seg.py reads them."""

import numpy as np
from PIL import Image


def make_data(root, names=("train", "val"), count=3, size=(12, 10), values=(0, 1, 2, 255)):
    """Writes images and labels; `size` is (width, height)."""
    rng = np.random.default_rng(0)
    for name in names:
        for part in ("images", "annotations"):
            (root / part / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(
                root / f"images/{name}/{i}.jpg"
            )
            label = rng.choice(np.array(values, dtype=np.uint8), (size[1], size[0]))
            Image.fromarray(label).save(root / f"annotations/{name}/{i}.png")
    return root
