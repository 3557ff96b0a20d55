"""Images kept out of training, to measure on: which ones is decided by their names."""

import hashlib
import os

from pretrain.data.sources import ImageList
from splitmask_backbones.errors import UserError


def is_held_out(name: str, share: float) -> bool:
    """Returns whether an image is kept out: the same in every run, wherever it lies and whatever lies beside it."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_holdout(images: ImageList, share: float) -> tuple[ImageList, ImageList]:
    """Returns the images to train on and those kept out, about `share` of all.

    Nearly equal images, such as frames of one film, fall on both sides: there the loss on what was kept out tells less.

    Raises:
        ValueError: none is left on one side.
    """
    kept = {name for name in images.names if is_held_out(name, share)}
    if not kept or len(kept) == len(images):
        side = "none of" if not kept else "all of"
        raise UserError(f"--holdout {share} keeps {side} the {len(images)} images out of training: use another share")
    return images.subset(set(images.names) - kept), images.subset(kept)
