"""What is lost of images is said once a kind."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from pretrain.data.check import check_images
from pretrain.data.remarks import remarks
from pretrain.data.sources import ImageList


def test_pages_and_transparency_are_said_once(tmp_path: Path, caplog) -> None:
    plain, clear = Image.new("RGB", (4, 4)), Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    plain.save(tmp_path / "a.png")
    plain.save(tmp_path / "b.tif", save_all=True, append_images=[plain, plain])
    clear.save(tmp_path / "c.png")
    clear.save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    images = ImageList(tmp_path, ["a.png", "b.tif", "c.png", "d.png", "e.png"])
    expected = [
        "1 of 5 images looked at have more than one page or frame: the first is read (b.tif)",
        "2 of 5 images looked at are transparent: they are laid on white (c.png)",
    ]
    assert remarks(images) == expected
    with caplog.at_level("INFO", logger="pretrain"):
        check_images(images)
    assert [record.message for record in caplog.records] == expected
    assert remarks(ImageList(tmp_path, ["a.png"])) == []


def test_colours_of_more_than_8_bits_are_told(tmp_path: Path) -> None:
    """The decoder takes their upper 8 bits: a camera's 12 become 16 levels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)  # 16 bits a channel, RGB
    rows = zlib.compress(b"".join(b"\0" + struct.pack(">12H", *[4095] * 12) for _ in range(2)))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(png)
    Image.new("RGB", (4, 2)).save(tmp_path / "plain.png")
    Image.fromarray(np.zeros((2, 4), np.uint16)).save(tmp_path / "gray.png")
    (told,) = remarks(ImageList(tmp_path, ["deep.png", "plain.png", "gray.png"]))
    assert told.startswith("1 of 3 images looked at have 16 bits in each of several channels") and "deep.png" in told


def test_a_fifo_is_passed_by(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert remarks(ImageList(tmp_path, ["a.png"])) == []  # opening it would wait for ever


def test_a_large_list_is_looked_at_here_and_there(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2)).save(tmp_path / "x.png")
    assert remarks(ImageList(tmp_path, ["x.png"] * 1000))[0].startswith("64 of 64 images looked at")
