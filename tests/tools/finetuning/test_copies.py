"""Training images among the val images."""

from pathlib import Path

import pytest

from pretrain.data.sources import ImageList
from tools.cli import start_log
from tools.finetuning.copies import copies, warn_about_copies


def make(root: Path, **files: bytes) -> ImageList:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return ImageList(root, sorted(files))


def test_copies_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    long = bytes(range(256)) * 40
    train = make(tmp_path / "train", a=b"alpha", b=b"beta", c=long, d=b"")
    val = make(tmp_path / "val", a=b"gamma", x=b"beta", y=long[:-1] + b"?", z=b"?" + long[1:], empty=b"")
    val.names.append("missing")
    assert copies(train, val) == {tmp_path / "val" / "x": tmp_path / "train" / "b"}, (
        "same names and tails are no copies"
    )


def test_the_same_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make(tmp_path / "images", a=b"alpha", b=b"beta")
    start_log()  # as the tools do
    warn_about_copies({"train": images, "val": ImageList(tmp_path / "train" / ".." / "images", ["a", "b"])})
    expected = f"warning: 2 of 2 val images are training images as well, {tmp_path / 'train'}"
    assert capsys.readouterr().err.startswith(expected)
    warn_about_copies({"train": images, "val": make(tmp_path / "val", c=b"alpha")})
    assert (
        f"1 of 1 val images are training images as well, {tmp_path / 'val' / 'c'} (a copy of" in capsys.readouterr().err
    )
    warn_about_copies({"val": images})
    warn_about_copies({"train": images, "val": make(tmp_path / "other", d=b"delta")})
    assert not capsys.readouterr().err
