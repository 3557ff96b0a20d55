"""Whether a JPEG holds the end of its image: files go on after it (a phone's motion photo has a film there)."""

import re

_END = 0xD9
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM, RST0 to RST7
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan 0xFF is stuffed with 0, restarts belong to it


def has_end(data: bytes) -> bool:
    """Returns whether the first image of a JPEG file ends with its end-of-image marker.

    Walks from marker to marker (ITU T.81 Annex B): thumbnails within a segment have ends of their own, and what comes
    after the image can hold any bytes.
    """
    place = 2
    while True:
        found = _NEXT_MARKER.search(data, place)
        if found is None:
            return False
        marker, place = data[found.start() + 1], found.end()
        if marker == _END:
            return True
        if marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
