"""The images of a folder that are looked at, spread evenly over it, and what a run draws for them. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import CONFIG
from tools.running.job import Job

if TYPE_CHECKING:
    from PIL import Image


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


def copy_numbered(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Returns copies in `folder`, named 0.jpg, 1.png, ...: names may come with folders and repeat.

    What has a number already stays, whatever the source of now: it is what the runs have drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, source in enumerate(sources):
        file = next(folder.glob(f"{number}.*"), folder / f"{number}{source.suffix.lower()}")
        if not file.exists():
            write_atomically(file, source.read_bytes())
        files.append(file)
    return files


def prediction_job(training: str, tool: str, argv: tuple[str, ...], run: Path, pictures: Path, count: int) -> Job:
    """Returns the job that draws what the finished job `training` with the folder `run` predicts for numbered pictures.

    The last of the `count` pictures ends it. `argv` begins with the config.
    """
    argv, artefact = (*argv, "--predict", str(pictures)), f"predictions/{count - 1}.*"
    return Job(f"{training}/predict", tool, argv, run, artefact, (training,), resumable=False, seconds=15.0)


def as_seen(run: Path, pictures: Sequence[Path]) -> list[Image.Image]:
    """Returns pictures as a run reads them: upright, without transparency, many bits by the range of its data."""
    from pretrain.data.decode import UnreadableImage, read_image
    from pretrain.data.value_range import range_in

    value_range, found = range_in(read_object(run / CONFIG)), []
    for picture in pictures:
        try:
            found.append(read_image(picture, value_range))
        except UnreadableImage as error:
            raise UserError(f"{picture} cannot be read ({error}): remove it, and run the same command again") from None
    return found


def remove_drawn(run: Path, count: int) -> None:
    """Removes the drawings of `count` numbered pictures from the folder of a run; what else it has drawn stays."""
    for number in range(count):
        for file in (run / "predictions").glob(f"{number}.*"):
            file.unlink()


def drawn(run: Path, pictures: Sequence[Path]) -> list[Path]:
    """Returns the drawings of numbered pictures in the folder of a run."""
    return [next((run / "predictions").glob(f"{picture.stem}.*")) for picture in pictures]
