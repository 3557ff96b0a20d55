"""The range of values of a data set's images with more than 8 bits, from some of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.decode import UnreadableImage, read_deep
from pretrain.data.sources import ImageList
from pretrain.data.value_range import ValueRange, range_of, to_8_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

NUM_IMAGES, NUM_VALUES = 64, 20_000
"""Images of a data set whose values are looked at, and values of each, both drawn: every n-th could be one channel of
several, or one column of all."""


def range_of_images(images: ImageList, given: ValueRange | None = None) -> tuple[ValueRange, int, int] | None:
    """Returns the range of a data set, the grey levels that it leaves, and how many of the images looked at are deep.

    None where none of them has more than 8 bits; `given` is taken in place of what is measured.
    """
    found: list[np.ndarray] = []
    rng = np.random.default_rng(0)
    for index in sorted(rng.permutation(len(images))[:NUM_IMAGES]):
        name = images.names[index]
        try:
            values = read_deep(images.path(name))
        except (OSError, UnreadableImage):  # counted later
            continue
        if values is not None and values.size:
            found.append(values if values.size <= NUM_VALUES else values[rng.integers(0, values.size, NUM_VALUES)])
    if not found:
        return None
    together = np.concatenate(found)
    value_range = given or range_of(together)
    levels = np.unique(to_8_bits(together, np.ones(together.shape, bool), value_range))
    return value_range, len(levels), len(found)


def choose_range(images: ImageList, given: ValueRange | None = None, remedy: str = "") -> ValueRange | None:
    """Returns the range of a data set, `given` or measured, and says it; None where no image has more than 8 bits.

    Args:
        remedy: what else can be done about it, at the end of the line.
    """
    found = range_of_images(images, given)
    if found is None:
        if given is not None:
            logger.warning(
                "a range of %g to %g has no effect: no image looked at has one channel of more than 8 bits", *given
            )
        return given
    measured, levels, count = found
    low, high = given or measured
    logger.warning(
        "%d of %d images looked at have more than 8 bits: values from %g to %g become 0 to 255 (%d levels are left%s)",
        count, min(len(images), NUM_IMAGES), low, high, levels, remedy,
    )  # fmt: skip
    return low, high


def range_of_run(
    images: ImageList,
    fabric: Fabric,
    known: Mapping[str, Any] | None,
    given: ValueRange | None = None,
    remedy: str = "",
) -> ValueRange | None:
    """Returns the range of a run, in all processes: `given`, that of the run that goes on, or measured by one of them.

    Args:
        images: of the training.
        fabric: of the run.
        known: `data` of config.json of a run that is resumed or used; None for a new one.
        given: by the user.
        remedy: as of `choose_range`.
    """
    if known is not None and given is None:
        kept = known.get("value_range")
        return None if kept is None else (kept[0], kept[1])
    return fabric.broadcast(choose_range(images, given, remedy) if fabric.is_global_zero else None)
