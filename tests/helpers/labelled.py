"""Labelled pictures: a folder for each class."""

import numpy as np
from PIL import Image


def labelled_folder(root, colours, count=6):
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-30, 30, (40, 50, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


COLOURS = {"blue": (20, 20, 220), "red": (220, 20, 20), "train": (20, 220, 20)}  # a class may be called train
