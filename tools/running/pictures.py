"""Which images of a folder are looked at: some that can be read, spread evenly over it. Free of torch."""

from itertools import pairwise
from pathlib import Path


def choose_pictures(folder: Path, count: int) -> list[Path]:
    """Returns up to `count` readable images of a folder, the next one in place of one that cannot be read.

    Fewer where there are fewer; none of a folder that is empty or not there.
    """
    from pretrain.data.sources import ImageList, find_images
    from pretrain.training.evenly import evenly

    images = ImageList(
        folder, find_images(folder, "--pictures")[0] if folder.is_dir() and any(folder.iterdir()) else []
    )
    chosen = []
    for start, end in pairwise([*evenly(len(images), count), len(images)]):
        readable = (images.path(images.names[index]) for index in range(start, end) if images.is_readable(index))
        chosen += [file for file in [next(readable, None)] if file is not None]
    return chosen
