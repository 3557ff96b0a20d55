"""The range of values of a data set's images with more than 8 bits, from some of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pretrain.data.decode import UnreadableImage, read_deep
from pretrain.data.sources import ImageList
from pretrain.data.value_range import ValueRange, range_of, to_8_bits
from splitmask_backbones.errors import first_few

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

NUM_IMAGES, NUM_VALUES = 64, 20_000
"""Images of a data set whose values are looked at, and values of each, both drawn: every n-th could be one channel of
several, or one column of all."""


FLAT = 8
"""Grey levels below which hardly anything is left of an image."""


class DeepRange(NamedTuple):
    """What a range makes of the images that were looked at.

    Attributes:
        value_range: what becomes 0 and 255.
        num_levels: grey levels that it leaves of all together.
        num_deep: how many of the images have more than 8 bits.
        flat: names of those of them of which fewer than `FLAT` levels are left.
    """

    value_range: ValueRange
    num_levels: int
    num_deep: int
    flat: list[str]


def range_of_images(images: ImageList, given: ValueRange | None = None) -> DeepRange | None:
    """Returns the range of a data set and what it leaves; None where no image has more than 8 bits.

    `given` is taken in place of what is measured.
    """
    found: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for index in sorted(rng.permutation(len(images))[:NUM_IMAGES]):
        name = images.names[index]
        try:
            values = read_deep(images.path(name))
        except (OSError, UnreadableImage):  # counted later
            continue
        if values is not None and values.size:
            found[name] = values if values.size <= NUM_VALUES else values[rng.integers(0, values.size, NUM_VALUES)]
    if not found:
        return None
    value_range = given or range_of(np.concatenate(list(found.values())))
    levels = {
        name: np.unique(to_8_bits(values, np.ones(values.shape, bool), value_range)) for name, values in found.items()
    }
    flat = [name for name, left in levels.items() if len(left) < FLAT <= len(np.unique(found[name]))]
    return DeepRange(value_range, len(np.unique(np.concatenate(list(levels.values())))), len(found), flat)


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
    low, high = found.value_range
    logger.warning(
        "%d of %d images looked at have more than 8 bits: values from %g to %g become 0 to 255 (%d levels are left%s)",
        found.num_deep, min(len(images), NUM_IMAGES), low, high, found.num_levels, remedy,
    )  # fmt: skip
    if found.flat:
        logger.warning(
            "of %d of them fewer than %d levels are left (%s): one range for images of different kinds leaves some of "
            "them black or flat: bring them to one range first",
            len(found.flat), FLAT, first_few(found.flat, 3),
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
