"""File names of other machines, prefixes and URLs are repaired where exactly one file fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.detection.file_names import repair_file_names
from tools.detection.records import ImageRecord


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def repaired(folder: Path, *names: str) -> list[str]:
    records = [ImageRecord(number, name, 4, 4) for number, name in enumerate(names)]
    changes = repair_file_names(records, folder)
    found = [record.file_name for record in records]
    assert dict(changes) == {old: new for old, new in zip(names, found, strict=True) if old != new}
    return found


def test_a_folder_that_is_not_there_holds_no_other_name(tmp_path: Path) -> None:
    assert repaired(tmp_path / "nowhere", "a.jpg") == ["a.jpg"], "the images are missing, and told as such"


@pytest.mark.parametrize(
    "name",
    [
        "C:\\data\\images\\sub\\a 1.JPG",
        "images/sub/a 1.jpg",
        "/elsewhere/data/a 1.jpg",
        "a 1.jpg",
        "A 1.JPG",
        "https://host.example/bucket/a%201.jpg?token=5",
        "s3://bucket/sub/a 1.jpg",
        "/data/local-files/?d=sub%5Ca%201.jpg",
        "/data/upload/3/1a2b3c4d-a 1.jpg",
        "file:" + "///C:/data/a%201.jpg",
    ],
)
def test_the_one_file_that_fits_is_taken(tmp_path: Path, name: str) -> None:
    assert repaired(folder_of(tmp_path, "sub/a 1.jpg", "sub/b.jpg"), name) == ["sub/a 1.jpg"]


def test_what_is_there_stays_and_what_is_ambiguous_stays(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg", "one/b.jpg", "two/b.jpg", "note.txt", ".hidden/c.jpg")
    assert repaired(folder, "a.jpg") == ["a.jpg"]
    assert repaired(folder, "x/b.jpg") == ["x/b.jpg"]  # two files
    assert repaired(folder, "x\\two\\b.jpg") == ["two/b.jpg"]  # the one with more of the name in common
    frames = folder_of(tmp_path / "frames", "video2/0000.jpg", "video2/frame_12.png", "video2/cells of may.png")
    for name in ("video1/0000.jpg", "video1\\frame_12.png"):  # a frame of another video
        assert repaired(frames, name) == [name]
    assert repaired(frames, "video2\\0000.jpg", "/mnt/x/frame_12.png") == ["video2/0000.jpg", "video2/frame_12.png"]
    assert repaired(frames, "video1/cells of may.png") == ["video2/cells of may.png"]
    assert repaired(folder, "x/a.jpg", "a.jpg") == ["x/a.jpg", "a.jpg"]  # the file is another image's
    assert repaired(folder, "x/a.jpg", "y/a.jpg") == ["x/a.jpg", "y/a.jpg"]  # two images want it
    assert repaired(folder, "x/note.txt", "c.jpg", "zero\0.jpg", "") == ["x/note.txt", "c.jpg", "zero\0.jpg", ""]
