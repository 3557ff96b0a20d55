"""What of an image is not looked at, said once for a list: further pages, transparency, further channels."""

from collections import Counter

from PIL import Image

from pretrain.data.decode import FORMATS, open_regular
from pretrain.data.sources import ImageList
from pretrain.training.evenly import evenly

NUM_IMAGES = 64
"""Images that are looked at, evenly spread; their headers alone."""
_SAMPLES_PER_PIXEL = 277
"""TIFF tag: channels of a page, of which three or four are colours."""


def remarks(images: ImageList) -> list[str]:
    """Returns a line for each kind of loss, with how many of the images looked at have it and the first of them."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    places = evenly(len(images), NUM_IMAGES)
    for index in places:
        name = images.names[index]
        for kind in _of_image(images, name):
            counts[kind] += 1
            first.setdefault(kind, name)
    return [f"{count} of {len(places)} images looked at {kind} ({first[kind]})" for kind, count in counts.items()]


def _of_image(images: ImageList, name: str) -> list[str]:
    found = []
    try:
        with open_regular(images.path(name)) as file, Image.open(file, formats=FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                found.append("have more than one page or frame: the first is read")
            if ";16" in str(image.tile[:1]) and len(image.getbands()) > 1:
                found.append(
                    "have 16 bits in each of several channels: the upper 8 are read, in which 10 or 12 bits are nearly "
                    "black: convert those to 8 bits first"
                )
            if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
                found.append("are transparent: they are laid on white")
            if getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 1) > 4:
                found.append("have more than three colours: the first three are read")
    except Exception:  # unreadable ones are counted by whoever decodes them
        return []
    return found
