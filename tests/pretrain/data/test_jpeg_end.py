"""The end of a JPEG is found by its markers, whatever comes after it."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from pretrain.data.decode import UnreadableImage, read_image
from pretrain.data.jpeg_end import has_end


def jpeg(**options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_thumbnail():
    """Returns a JPEG whose EXIF segment holds another one, end marker included."""
    data, inner = jpeg(), b"Exif\0\0" + jpeg(quality=10)
    return data[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + data[2:]


@pytest.mark.parametrize(
    "data",
    [jpeg(), jpeg(progressive=True), jpeg(restart_marker_rows=1), jpeg(optimize=True, quality=100), with_thumbnail()],
    ids=["baseline", "progressive", "restarts", "large", "thumbnail"],
)
def test_an_end_is_found_and_a_cut_is_not(data):
    assert data.endswith(b"\xff\xd9") and has_end(data) and has_end(data + b"\0" * 9)
    rng = random.Random(0)
    for place in [len(data) - 1, len(data) - 2, *(rng.randrange(2, len(data) - 2) for _ in range(60))]:
        assert not has_end(data[:place] + b"\0" * 64), place


@pytest.mark.parametrize(
    "film",
    [
        b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08" + b"\0" * 20,
        b"\xff\xda" * 30 + b"\0" * 4,
        b"\0" * 100_000,
        b"SEFHe\0\0\0\xff\xd8\xff\xda\0",
    ],
)
def test_a_motion_photo_is_a_good_image(tmp_path, film):
    """A start of scan in the film after the image was taken for the image's: truncated."""
    path = tmp_path / "motion.jpg"
    path.write_bytes(jpeg() + film)
    with Image.open(io.BytesIO(jpeg())) as expected:
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))
    path.write_bytes(jpeg()[:-400] + b"\0" * 4000)
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(path)
