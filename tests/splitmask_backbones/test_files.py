"""splitmask_backbones.files: a target is whole, old or not there, and nothing is left beside it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from splitmask_backbones import files
from splitmask_backbones.files import replaced_at_once, sha256_of, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    write_atomically(path, b"old")
    with replaced_at_once(path) as beside:
        assert beside == tmp_path / f".weights.{os.getpid()}.tmp"
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["weights"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_other(error: type[BaseException], tmp_path: Path) -> None:
    write_atomically(tmp_path / "weights", b"old")

    def interrupted() -> None:
        with replaced_at_once(tmp_path / "weights") as beside:
            beside.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "weights").read_bytes() == b"old" and names(tmp_path) == ["weights"]


def write_folder(path: Path, name: str, content: str) -> None:
    with replaced_at_once(path) as beside:
        (beside / "inner").mkdir(parents=True)
        (beside / "inner" / name).write_text(content)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    left_over = tmp_path / f".model.{os.getpid()}.tmp"
    left_over.mkdir()
    (left_over / "of a killed process").touch()
    write_folder(tmp_path / "model", "a", "old")
    write_folder(tmp_path / "model", "b", "new")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["inner"]
    assert names(tmp_path / "model" / "inner") == ["b"]


def test_an_old_folder_survives_a_rename_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", "a", "old")
    rename = os.replace

    def fails_once(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            raise OSError("the disk went away")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="went away"):
        write_folder(tmp_path / "model", "b", "new")
    assert names(tmp_path) == ["model"] and (tmp_path / "model/inner/a").read_text() == "old"


def test_content_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a renamed file that was not flushed may be empty."""
    calls: list[tuple[str, str]] = []
    flush, rename = files._flush, os.replace
    monkeypatch.setattr(files, "_flush", lambda path: (calls.append(("flush", path.name)), flush(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("rename", b.name)), rename(a, b)))
    write_folder(tmp_path / "model", "a", "text")
    beside = f".model.{os.getpid()}.tmp"
    assert sorted(calls[:3]) == [("flush", beside), ("flush", "a"), ("flush", "inner")]
    assert calls[3:] == [("rename", "model"), ("flush", tmp_path.name)]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed_is_no_failure(
    number: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network file systems; an error of the disk is one."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) if fails else contextlib.nullcontext():
        files.write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"out\.pth"), replaced_at_once(tmp_path / "out.pth"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
