"""Images of several places as one list: what is unlabelled mostly does not lie in one folder."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from pretrain.data.selection import NothingLeft
from pretrain.data.sources import ImageList, check_source, open_source
from splitmask_backbones.errors import UserError


def check_sources(places: Sequence[str], images: str | None = None) -> None:
    """Looks at what each place is, as `check_source` does.

    Raises:
        UserError: as there, or `images` with more than one place.
    """
    if len(places) > 1 and images is not None:
        raise UserError("--images goes with a single --data, a COCO json: among several give the image folder itself")
    for place in places:
        check_source(place, images)


def open_sources(
    places: Sequence[str], images: str | None = None, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> ImageList:
    """Returns the images of all places, each once; a single place is what `open_source` makes of it.

    The names of several are relative to the folder that holds them all: like those of one folder they stay the same
    when that is moved.

    Args:
        places: each as of `open_source`, which also says what the others are.

    Raises:
        UserError: as of `check_sources` and `open_source`.
    """
    check_sources(places, images)
    if len(places) == 1:
        return open_source(places[0], images, include, exclude)
    lists, without = [], {}
    for place in places:
        try:
            lists.append((place, open_source(place, images, include, exclude)))
        except NothingLeft as error:
            without[place] = error  # what is asked for may lie in the other places alone
    if not lists:
        raise next(iter(without.values()))
    root = os.path.commonpath([os.path.abspath(found.root) for _, found in lists])
    names = {
        PurePath(os.path.relpath(os.path.join(os.path.abspath(found.root), name), root)).as_posix()
        for _, found in lists
        for name in found.names
    }
    kinds = "; ".join(f"{len(found)} in {place}, {found.kind}" for place, found in lists)
    notes = [f"{place}: {note}" for place, found in lists for note in found.notes]
    notes += [str(error) for error in without.values()]
    return ImageList(Path(root), sorted(names), kinds, tuple(notes))
