"""Which images a pre-training learns from: chosen, checked, cached, and how more than 8 bits become 8."""

from __future__ import annotations

import dataclasses
import logging
import socket
from typing import TYPE_CHECKING, Any

from pretrain.data.cache import attach
from pretrain.data.cache_filling import filling
from pretrain.data.cache_lock import CacheError
from pretrain.data.check import BadImage, check_images, enforce_bad_limit
from pretrain.data.deep_images import range_of_run
from pretrain.data.sources import ImageList, lost
from pretrain.training.distributed import gather
from pretrain.training.options import AUTO, OFF
from pretrain.training.processes import processes
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.run_files import BAD_IMAGES

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


def with_range(
    source: ImageList, given: tuple[float, float] | None, previous: dict[str, Any] | None, fabric: Fabric
) -> ImageList:
    """Returns the images with the range of values that becomes 8 bits, and says so where there are more."""
    known = None if previous is None else previous["data"]
    value_range = range_of_run(source, fabric, known, given, "; --range LOW,HIGH decides otherwise")
    return dataclasses.replace(source, value_range=value_range)


def readable_images(
    source: ImageList, folder: RunFolder, fabric: Fabric, workers: int, max_bad_fraction: float, cache: str = OFF
) -> tuple[ImageList, dict[str, Any]]:
    """Returns the images that decode to the end, and what identifies the data; a resume trusts an unchanged list.

    To be called by all processes. One of each machine fills the cache, which may lie on a disk of its own: where
    machines share it, one fills it and the others find all there.

    Args:
        source: all images.
        folder: of the run; what cannot be read is listed in it.
        fabric: of the run.
        workers: data processes of the check.
        max_bad_fraction: as in `RunOptions`.
        cache: where decoded images are kept: a folder, or AUTO or OFF.
    """
    data: dict[str, Any] = {"num_files": len(source), "fingerprint": source.fingerprint()}
    data |= {} if source.value_range is None else {"value_range": list(source.value_range)}
    before = (folder.previous or {}).get("data", {})
    bad = set(before.get("unreadable", []))
    place = OFF if folder.finished else cache
    own = processes()
    is_checking = fabric.is_global_zero or own.local_rank == 0 and place != OFF
    found: list[BadImage] = []
    # Other data than the run's is told apart by write_config, before an image is read.
    if is_checking and (not before or place != OFF and before["fingerprint"] == data["fingerprint"]):
        if fabric.is_global_zero:
            print(f"{source.describe()}: checking {len(source)} images")
        found, place = _check(source, bad, place, workers)
        if not fabric.is_global_zero:  # its copy of the images may be another
            found = [BadImage(image.name, f"{image.reason} (on {socket.gethostname()})") for image in found]
    of_ranks = gather([(found, place)])
    found = _together([images for images, _ in of_ranks])
    if found and before:
        raise lost(source.path(found[0].name), found[0].reason)
    if fabric.is_global_zero:
        enforce_bad_limit(len(source), found, max_bad_fraction, folder.path / BAD_IMAGES, root=source.root)
    bad = fabric.broadcast(bad) | {image.name for image in found}
    place = of_ranks[own.rank - own.local_rank][1]  # that of this machine: another one's disk may be full
    data["unreadable"] = sorted(bad)
    images = source if place == OFF else attach(source, place)
    return images.subset([name for name in source.names if name not in bad]), data


def _together(of_ranks: list[list[BadImage]]) -> list[BadImage]:
    """Returns what any machine cannot read, with the first one's reason, in the order of the list."""
    first = {image.name: image for found in reversed(of_ranks) for image in found}
    return [first[name] for name in sorted(first)]


def _check(source: ImageList, bad: set[str], place: str, workers: int) -> tuple[list[BadImage], str]:
    """Returns what cannot be read beside the `bad` images, and where the rest is cached: there is not always room."""
    wanted = set(source.names) - bad
    if place != OFF:
        try:
            with filling(source, place, workers) as images:
                found = check_images(images.subset(wanted), workers=workers)
            return found, place
        except CacheError as error:
            if place != AUTO:
                raise
            logger.warning("%s: the run goes on without a cache", error)
    return check_images(source.subset(wanted), workers=workers), OFF
