"""Small labelled pictures for the classification tests: each class has a colour of its own. Made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}


def picture(colour: tuple[int, int, int], rng: np.random.Generator, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """Returns a noisy picture of one colour, `size` is `(H, W)`."""
    noise = rng.normal(0, 25, (*size, 3))
    return Image.fromarray(np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8))


def write_classes(
    folder: Path, per_class: int, seed: int = 0, colours: dict[str, tuple[int, int, int]] = COLOURS
) -> Path:
    """Writes `folder/CLASS/NN.png` and returns the folder."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            picture(colour, rng).save(folder / name / f"{index:02d}.png")
    return folder


def write_root(root: Path, num_train: int = 8, num_val: int = 4) -> Path:
    """Writes `root/{train,val}/CLASS/NN.png` and returns the root."""
    write_classes(root / "train", num_train, seed=0)
    write_classes(root / "val", num_val, seed=1)
    return root
