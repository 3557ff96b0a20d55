"""What tools/pretrain.py makes of its images: an unchanged list is trusted, a range of values is kept."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretrain.data.cache import CachedImages
from pretrain.data.cache_filling import filling
from pretrain.data.check import BadImage
from pretrain.data.sources import ImageList, open_source
from pretrain.training.distributed import make_fabric
from pretrain.training.options import AUTO, OFF
from pretrain.training.processes import Processes
from tests.helpers.launch import torchrun_variables
from tests.helpers.paths import ROOT
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


def test_an_image_that_a_resume_cannot_read_any_more_is_named_and_the_list_of_before_stays(folder, tmp_path) -> None:
    source, fabric = open_source(folder), make_fabric(device="cpu")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    run.previous = {"data": readable_images(source, run, fabric, 0, 1.0)[1]}
    before = (tmp_path / "bad_images.txt").read_bytes()
    pixels = folder / "1.png"
    pixels.write_bytes(b"x" * pixels.stat().st_size)
    with pytest.raises(ValueError, match=r"/1.png could be read when the run started and cannot be now .*--resume$"):
        readable_images(source, run, fabric, 0, 1.0, str(tmp_path / "cache"))
    assert (tmp_path / "bad_images.txt").read_bytes() == before


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


MACHINE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from pretrain.data.sources import ImageList, open_source
from pretrain.training.distributed import make_fabric
from tools.pretraining.images import readable_images
decoded, real = [], ImageList.decode
ImageList.decode = lambda self, index: [decoded.append(self.names[index]), real(self, index)][1]
source, fabric = open_source(sys.argv[1]), make_fabric(device="cpu")
run = SimpleNamespace(path=Path(sys.argv[2]), previous=None, finished=False)
found, data = readable_images(source, run, fabric, 0, 1.0, sys.argv[3])
fabric.barrier()
num_decoded, cached = len(decoded), getattr(found, "cache", None)
sums = [int(np.asarray(found.decode(index)).sum()) for index in range(len(found))]
print(f"found {found.names} {data['unreadable']} {cached is not None and found.is_complete()} {num_decoded} {sums}")
"""


@pytest.mark.parametrize("is_shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_machine_checks_the_cache_on_its_own_disk(is_shared: bool, folder, tmp_path, monkeypatch) -> None:
    """What a machine has of an earlier run may be old: it decodes anew what has changed since."""
    homes, source = [tmp_path / "home", tmp_path / ("home" if is_shared else "other")], open_source(folder)
    for home in homes:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        with filling(source, AUTO, 0) as filled:
            images.check_images(filled)
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(folder / "1.png")
    started = []
    for rank, home in enumerate(homes):
        env = os.environ | torchrun_variables(rank, 2, 29561 + is_shared)
        env |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home)}
        words = [sys.executable, "-c", MACHINE, str(folder), str(tmp_path), AUTO]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, env=env, cwd=ROOT, **pipes))
    ends = [process.communicate(timeout=120) for process in started]
    assert all(process.returncode == 0 for process in started), ends
    found = "found ['0.png', '1.png', '2.png'] ['bad.png'] True "
    said = [out.rstrip().partition(found)[2] for out, _ in ends]
    sums = [int(np.asarray(ImageList.decode(source, index)).sum()) for index in range(3)]
    assert [words.partition(" ")[2] for words in said] == [str(sums)] * 2
    # bad.png and 1.png; where the disk is one, 1.png by either alone
    assert sorted(int(words.split()[0]) for words in said) == ([1, 2] if is_shared else [2, 2])


@pytest.mark.parametrize("rank", range(4))
def test_what_one_machine_cannot_read_none_learns_from_and_each_has_its_own_cache(
    rank, folder, tmp_path, monkeypatch
) -> None:
    """Two machines of two processes: the disk of the second one was full, and its copy of an image is broken."""
    source, place = open_source(folder), str(tmp_path / "cache")
    run: Any = SimpleNamespace(path=tmp_path, previous=None, finished=False)
    sent = []

    def gather(items: list[Any]) -> list[Any]:
        sent.extend(items)
        first, second = [BadImage("bad.png", "broken")], [BadImage("bad.png", "on b"), BadImage("1.png", "on b")]
        return [(first, place), ([], place), (second, OFF), ([], place)]

    monkeypatch.setattr(images, "gather", gather)
    monkeypatch.setattr(images, "processes", lambda: Processes(rank, 4, rank % 2, 2))
    fabric: Any = SimpleNamespace(is_global_zero=rank == 0, broadcast=lambda value: value)
    with filling(source, place, 0) as filled:
        images.check_images(filled)
    found, data = readable_images(source, run, fabric, 0, 1.0, place)
    assert found.names == ["0.png", "2.png"] and data["unreadable"] == ["1.png", "bad.png"]
    assert isinstance(found, CachedImages) == (rank < 2)
    assert [[image.name for image in bad] for bad, _ in sent] == [["bad.png"] if rank % 2 == 0 else []]
    if rank == 0:
        lines = (tmp_path / "bad_images.txt").read_text().splitlines()
        assert [line.rpartition("\t")[2] for line in lines] == ["on b", "broken"]
