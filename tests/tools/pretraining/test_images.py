"""What tools/pretrain.py makes of its images: an unchanged list is trusted, a range of values is kept."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.data.cache import CachedImages
from pretrain.data.sources import open_source
from pretrain.training.distributed import make_fabric
from pretrain.training.options import AUTO
from tools.pretraining import images
from tools.pretraining.images import readable_images, with_range


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for number in range(3):
        values = np.full((8, 8), 1000 * number, np.uint16)
        values[0] = np.arange(8) * 100
        Image.fromarray(values).save(tmp_path / f"data/{number}.png")
    (tmp_path / "data/bad.png").write_bytes(b"no image")
    return tmp_path / "data"


def test_a_list_is_checked_once_and_trusted_while_it_is_the_same(folder, tmp_path, monkeypatch) -> None:
    source, fabric = open_source(folder), make_fabric(device="cpu")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    found, data = readable_images(source, run, fabric, 0, 1.0)
    assert found.names == ["0.png", "1.png", "2.png"] and data["unreadable"] == ["bad.png"]
    run.previous = {"data": data}
    monkeypatch.setattr(images, "check_images", lambda *args, **options: pytest.fail("checked again"))
    again, same = readable_images(source, run, fabric, 0, 1.0)
    assert again.names == found.names and same == data


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch, caplog) -> None:
    """A home that is read-only, a user without one: `auto` takes what there is, a folder of one's own has to work."""
    source, fabric = open_source(folder), make_fabric(device="cpu")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, _ = readable_images(source, run, fabric, 0, 1.0, AUTO)
    assert not isinstance(found, CachedImages) and "the run goes on without a cache" in caplog.text
    with pytest.raises(ValueError, match=r"file/cache/.* cannot be filled: .*Not a directory.*--cache off"):
        readable_images(source, run, fabric, 0, 1.0, str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("what", ["pwrite", "lockf"])
def test_a_cache_that_fails_on_the_way_is_done_without(what, folder, tmp_path, monkeypatch, caplog) -> None:
    """A disk that fills up with the second image, a file system without locks: files are there to be read."""
    caplog.set_level("INFO")
    source, fabric = open_source(folder), make_fabric(device="cpu")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    real, written = os.pwrite, []

    def refuse(*args):
        if what == "lockf":
            raise OSError(errno.ENOLCK, "No locks available")
        written.append(args)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr({"pwrite": os, "lockf": fcntl}[what], what, refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found, data = readable_images(source, run, fabric, 0, 1.0, AUTO)
    assert not isinstance(found, CachedImages) and found.names == ["0.png", "1.png", "2.png"]
    assert data["unreadable"] == ["bad.png"]
    said = map(logging.LogRecord.getMessage, caplog.records)
    warned = [text for text in said if not text.startswith("unreadable image")]
    assert len(warned) == 1 and warned[0].endswith("--cache off: the run goes on without a cache"), warned
    assert sum(path.stat().st_size for path in (tmp_path / "home").rglob("pixels.u8")) == 0
    written.clear()
    with pytest.raises(ValueError, match=rf"the cache in {tmp_path / 'own'}/.* cannot be filled: .*--cache DIR"):
        readable_images(source, run, fabric, 0, 1.0, str(tmp_path / "own"))


def test_a_cache_is_filled_again_by_a_resume_but_not_for_a_finished_run(folder, tmp_path) -> None:
    source, fabric = open_source(folder), make_fabric(device="cpu")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    _, data = readable_images(source, run, fabric, 0, 1.0)
    cached = fabric, 0, 1.0, str(tmp_path / "cache")
    run.previous = {"data": data}
    found, _ = readable_images(source, run, *cached)
    assert isinstance(found, CachedImages) and found.cache is not None and all(map(found.cache.has, found.names))
    # The limit is for what a new run finds: a resume knows its bad images.
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert readable_images(source, run, fabric, 0, 0.0, str(tmp_path / "cache"))[1] == data
    run.finished = True
    assert not isinstance(readable_images(source, run, *cached)[0], CachedImages)


def test_the_range_is_measured_given_or_that_of_the_run(folder, caplog) -> None:
    source, fabric = open_source(folder), make_fabric(device="cpu")
    measured = with_range(source, None, None, fabric).value_range
    assert measured is not None and 1900 < measured[1] <= 2000
    assert with_range(source, (0, 500), None, fabric).value_range == (0, 500)
    assert with_range(source, None, {"data": {"value_range": [1, 2]}}, fabric).value_range == (1, 2)
    assert with_range(source, None, {"data": {}}, fabric).value_range is None  # there were none
    assert "3 of 4 images looked at have more than 8 bits" in caplog.text
