"""Cached images: the same pixels, each decoded once, through kills, changes and full disks."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import re
import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import PIL
import pytest
from PIL import Image, features

from pretrain.data import cache, cache_filling, cache_lock
from pretrain.data.cache import CachedImages, attach, cache_folder
from pretrain.data.cache_filling import Filler, filling
from pretrain.data.cache_lock import CacheError
from pretrain.data.check import check_images
from pretrain.data.sources import ImageList
from pretrain.training.options import AUTO


def picture(path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    root = tmp_path / "images"
    root.mkdir()
    for number, size in enumerate([(20, 30), (31, 7), (1, 1), (16, 16)]):
        picture(root / f"{number}.{'jpg' if number % 2 else 'png'}", size, number)
    turned = Image.open(root / "0.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    return ImageList(root, sorted(path.name for path in root.iterdir()))


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = ImageList.decode

    def decode(self: ImageList, index: int) -> Image.Image:
        seen.append(self.names[index])
        return real(self, index)

    monkeypatch.setattr(ImageList, "decode", decode)
    return seen


def fill(images: ImageList, place: Path) -> list[str]:
    with filling(images, str(place), 0) as cached:
        return [bad.name for bad in check_images(cached)]


def test_pixels_are_the_decoded_ones_and_each_is_decoded_once(images, tmp_path, monkeypatch) -> None:
    good = [name for name in images.names if name != "broken.jpg"]
    expected = [np.asarray(images.subset(good).decode(index)) for index in range(len(good))]
    seen = count_decodes(monkeypatch)
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]
    assert sorted(seen) == images.names
    seen.clear()
    cached = pickle.loads(pickle.dumps(attach(images, str(tmp_path / "cache")).subset(good)))  # as to a data worker
    for index, pixels in enumerate(expected):
        assert np.array_equal(np.asarray(cached.decode(index)), pixels)
    assert seen == []
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]  # another run
    assert seen == ["broken.jpg"]


def test_a_changed_image_is_decoded_again_alone(images, tmp_path, monkeypatch) -> None:
    fill(images, tmp_path / "cache")
    size_before = (cache_folder(images, str(tmp_path / "cache")) / "pixels.u8").stat().st_size
    running = attach(images, str(tmp_path / "cache"))
    before = [np.asarray(running.decode(images.names.index(name))) for name in ("2.png", "3.jpg")]
    picture(images.root / "3.jpg", (16, 16), 99)  # the same sides, and a new place: another run may read the old one
    os.utime(images.root / "3.jpg", ns=(1, 1))
    picture(images.root / "2.png", (40, 40), 98)
    seen = count_decodes(monkeypatch)
    fill(images, tmp_path / "cache")
    assert sorted(seen) == ["2.png", "3.jpg", "broken.jpg"]
    cached = attach(images, str(tmp_path / "cache"))
    for name in ("2.png", "3.jpg"):
        index = images.names.index(name)
        assert np.array_equal(np.asarray(cached.decode(index)), np.asarray(ImageList.decode(cached, index)))
    size_after = (cache_folder(images, str(tmp_path / "cache")) / "pixels.u8").stat().st_size
    assert size_after == size_before + (16 * 16 + 40 * 40) * 3
    for name, pixels in zip(("2.png", "3.jpg"), before, strict=True):  # a run goes by what there was when it began
        assert np.array_equal(np.asarray(running.decode(images.names.index(name))), pixels)


def killed(images: ImageList, place: str, after: int) -> None:
    real, done = Filler.write, []

    def write(self, name, image) -> None:
        real(self, name, image)
        done.append(name)
        if len(done) == after:
            os._exit(9)

    Filler.write = write  # type: ignore[method-assign]
    cache_filling._SYNC_BYTES = 1
    with filling(images, place, 0) as cached:
        check_images(cached)


def test_a_killed_filling_goes_on(images, tmp_path, monkeypatch) -> None:
    place = str(tmp_path / "cache")
    process = multiprocessing.get_context("fork").Process(target=killed, args=(images, place, 2))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    half = attach(images, place)
    assert half.cache is not None
    there = [name for name in images.names if half.cache.has(name)]
    assert len(there) == 2
    for index, name in enumerate(images.names):  # usable as it is: what is missing comes from the file
        if name != "broken.jpg":
            assert np.array_equal(np.asarray(half.decode(index)), np.asarray(images.decode(index)))
    seen = count_decodes(monkeypatch)
    fill(images, tmp_path / "cache")
    assert sorted(seen) == sorted(set(images.names) - set(there))


def test_a_disk_without_room_is_refused_before_anything_is_written(images, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, cache_filling._SPARE + 100))
    with pytest.raises(ValueError, match=r"needs 0\.0 GB more.*--cache off"), filling(images, str(tmp_path), 0):
        pass
    assert (cache_folder(images, str(tmp_path)) / "pixels.u8").stat().st_size == 0
    other = images.subset(set(images.names) - {"broken.jpg"})
    lack = r"can be used there \(0\.0 GB are in caches of other lists beside it, which may be deleted\): name"
    with pytest.raises(ValueError, match=lack), filling(other, str(tmp_path), 0):
        pass


def test_a_cache_that_others_cut_short_is_not_trusted(images, tmp_path) -> None:
    fill(images, tmp_path / "cache")
    os.truncate(cache_folder(images, str(tmp_path / "cache")) / "pixels.u8", 100)
    cached = attach(images, str(tmp_path / "cache"))
    for index in (1, 2):
        assert np.array_equal(np.asarray(cached.decode(index)), np.asarray(images.decode(index)))


def test_what_was_cut_off_is_decoded_again_and_no_hole_is_served(images, tmp_path) -> None:
    """A write behind the end makes a file long again: the bytes between are zeros, and no image."""
    fill(images, tmp_path / "cache")
    (cache_folder(images, str(tmp_path / "cache")) / "pixels.u8").unlink()
    path = images.root / images.names[-1]
    os.utime(path, ns=(1, 1))  # one changed image, the last of the file
    fill(images, tmp_path / "cache")
    cached = attach(images, str(tmp_path / "cache"))
    for index, name in enumerate(images.names):
        if name != "broken.jpg":
            assert cached.cache.has(name)
            assert np.array_equal(np.asarray(cached.decode(index)), np.asarray(images.decode(index))), name


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_an_index_that_is_not_whole_is_made_anew(content: bytes, images, tmp_path) -> None:
    fill(images, tmp_path / "cache")
    index = cache_folder(images, str(tmp_path / "cache")) / "index.npy"
    index.write_bytes(content)
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]
    cached = attach(images, str(tmp_path / "cache"))
    assert np.array_equal(np.asarray(cached.decode(0)), np.asarray(images.decode(0)))


def test_a_lower_limit_of_pixels_counts_for_what_is_cached_too(images, tmp_path, monkeypatch) -> None:
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    found = fill(images, tmp_path / "cache")
    assert found == [bad.name for bad in check_images(images)] and len(found) > 1


def test_pixels_are_written_in_as_many_parts_as_it_takes(images, tmp_path, monkeypatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: real(descriptor, content[:100], offset))
    fill(images, tmp_path / "cache")
    cached = attach(images, str(tmp_path / "cache"))
    assert np.array_equal(np.asarray(cached.decode(0)), np.asarray(images.decode(0)))


def test_the_place_follows_the_list(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder(images, AUTO).parent == tmp_path / "home/splitmask_backbones"
    assert cache_folder(images, AUTO) == cache_folder(images, AUTO)
    assert cache_folder(images.subset(images.names[:2]), AUTO) != cache_folder(images, AUTO)
    assert isinstance(attach(images, AUTO).subset(images.names[:2]), CachedImages)
    assert attach(images, AUTO).cache is None  # nobody has made one


@pytest.mark.parametrize("what", ["PIL.__version__", "jpg", "libjpeg_turbo"])
def test_other_versions_of_what_decodes_have_a_cache_of_their_own(what: str, images, monkeypatch) -> None:
    before = cache_folder(images, "cache")
    if what == "PIL.__version__":
        monkeypatch.setattr(PIL, "__version__", "0.9")
    else:
        real = features.version
        monkeypatch.setattr(features, "version", lambda name: "0.9" if name == what else real(name))
    assert cache_folder(images, "cache") != before


def test_a_run_goes_on_with_its_own_pixels_where_most_of_a_cache_is_made_anew(images, tmp_path) -> None:
    """Where most images have changed, the old pixels are not kept beside the new ones: only who has them open does."""
    good = [name for name in images.names if name != "broken.jpg"]
    fill(images, tmp_path / "cache")
    running = attach(images, str(tmp_path / "cache")).subset(good)
    worker = pickle.loads(pickle.dumps(running))
    before = [np.asarray(running.decode(index)) for index in range(len(good))]
    whole = cache_folder(images, str(tmp_path / "cache")) / "pixels.u8"
    size_before = whole.stat().st_size
    for number, name in enumerate(good):
        with Image.open(images.root / name) as image:
            picture(images.root / name, (image.height, image.width), 50 + number)
        os.utime(images.root / name, ns=(1, 1))
    fill(images, tmp_path / "cache")
    assert whole.stat().st_size == size_before
    new = attach(images, str(tmp_path / "cache")).subset(good)
    for index, pixels in enumerate(before):
        assert np.array_equal(np.asarray(running.decode(index)), pixels)
        for later in (new, worker):  # a worker that starts now finds other pixels in their place, and reads the file
            assert np.array_equal(np.asarray(later.decode(index)), np.asarray(images.subset(good).decode(index)))
        assert np.array_equal(running.stored(index), pixels) and worker.stored(index) is None


@pytest.mark.parametrize("gone", ["index.npy", "pixels.u8"])
def test_a_cache_that_is_deleted_gives_way_to_the_files(gone: str, images, tmp_path) -> None:
    fill(images, tmp_path / "cache")
    worker = pickle.loads(pickle.dumps(attach(images, str(tmp_path / "cache"))))
    (cache_folder(images, str(tmp_path / "cache")) / gone).unlink()
    assert np.array_equal(np.asarray(worker.decode(0)), np.asarray(images.decode(0)))
    assert attach(images, str(tmp_path / "cache")).cache is None


def test_a_record_that_another_run_is_changing_is_not_there(images, tmp_path, monkeypatch) -> None:
    """Attaching takes no lock: between its two looks another run may give an image a new place."""
    fill(images, tmp_path / "cache")
    folder, looks = cache_folder(images, str(tmp_path / "cache")), []
    real = cache.read_index

    def look(*args):
        found = real(*args)
        index = np.lib.format.open_memmap(folder / "index.npy", mode="r+")
        index["offset"][len(looks)] += 3
        looks.append(found)
        return found

    monkeypatch.setattr(cache, "read_index", look)
    cached = attach(images, str(tmp_path / "cache"))
    assert len(looks) == 2 and [cached.cache.has(name) for name in images.names[:3]] == [False, True, True]


def test_a_cache_larger_than_the_memory_is_read(images, tmp_path) -> None:
    fill(images, tmp_path / "cache")
    whole = cache_folder(images, str(tmp_path / "cache")) / "pixels.u8"
    index = np.lib.format.open_memmap(whole.with_name("index.npy"), mode="r+")
    row, far = images.names.index("0.png"), 3 << 40
    expected = np.asarray(images.decode(row))
    with open(whole, "r+b") as file:
        try:
            file.truncate(far + expected.size)
        except OSError as error:
            pytest.skip(f"this file system has no files of 3 TiB: {error}")
        if whole.stat().st_blocks * 512 > 1 << 30:
            pytest.skip("this file system has no sparse files")
        os.pwrite(file.fileno(), expected.tobytes(), far)
    index["offset"][row] = far
    cached = attach(images, str(tmp_path / "cache"))
    assert np.array_equal(cached.stored(row), expected) and np.array_equal(np.asarray(cached.decode(row)), expected)
    assert np.array_equal(cached.stored(row + 1), np.asarray(images.decode(row + 1)))
    with pytest.raises(ValueError, match="read-only"):
        cached.stored(row)[:] = 0


@pytest.mark.parametrize("sync_bytes", [1, 1000, 1 << 28])
def test_a_power_cut_at_any_time_leaves_no_image_without_its_pixels(sync_bytes, images, tmp_path, monkeypatch) -> None:
    """The index may be on the disk as it is, the pixels only as far as they were flushed."""
    monkeypatch.setattr(cache_filling, "_SYNC_BYTES", sync_bytes)
    whole, disk, flushes = cache_folder(images, str(tmp_path / "cache")) / "pixels.u8", tmp_path / "disk", []
    disk.touch()

    def flush(descriptor: int) -> None:
        flushes.append(shutil.copyfile(whole, disk))

    def num_whole() -> int:
        found = np.fromfile(disk, np.uint8)
        records = np.load(whole.with_name("index.npy"))
        ready = [row for row, record in enumerate(records) if record["ready"] == cache.READY]
        for row in ready:
            pixels = np.asarray(images.decode(row)).ravel()
            assert np.array_equal(found[records["offset"][row] :][: len(pixels)], pixels)
        return len(ready)

    real = Filler.write

    def write(self, *args) -> None:
        num_whole()
        real(self, *args)
        num_whole()

    monkeypatch.setattr(cache_filling, "_flush", flush)
    monkeypatch.setattr(Filler, "write", write)
    fill(images, tmp_path / "cache")
    assert num_whole() == 5 and len(flushes) == {1: 5, 1000: 3, 1 << 28: 1}[sync_bytes]


def test_what_is_written_waits_for_what_must_be_on_the_disk_before(images, tmp_path, monkeypatch) -> None:
    """The pages of the index come to the disk in any order: places change between two flushes of it."""
    fill(images, tmp_path / "cache")
    os.utime(images.root / "3.jpg", ns=(1, 1))
    events: list[str] = []
    real, write = Filler._files, os.pwrite
    monkeypatch.setattr(Filler, "_files", lambda self: (Index(real(self)[0], events), real(self)[1]))
    monkeypatch.setattr(Column, "left", 10**6)
    monkeypatch.setattr(Column, "events", events)
    monkeypatch.setattr(os, "pwrite", lambda *args: [events.append("pixels"), write(*args)][1])
    fill(images, tmp_path / "cache")
    shown = [event for event, last in zip(events, [None, *events], strict=False) if event != last]
    assert shown == ["states", "flush", "records", "flush", "pixels", "records"]


class Column(np.ndarray):
    """A column of the index in a process that dies at one of its writes."""

    left = 0
    events: ClassVar[list[str]] = []

    def __setitem__(self, key, value) -> None:
        Column.events.append("records")
        Column.left -= 1
        if Column.left < 0:
            raise KeyboardInterrupt
        np.asarray(self)[key] = value


class Index:
    def __init__(self, index, events: list[str]) -> None:
        self.index, self.events = index, events

    def flush(self) -> None:
        self.events.append("flush")
        self.index.flush()

    def __getitem__(self, name):
        return self.index[name].view(Column)

    def __setitem__(self, name, value) -> None:
        self.events.append("states")
        self.index[name] = value


@pytest.mark.parametrize("writes", range(8))
def test_a_kill_between_two_columns_of_the_index_gives_no_place_twice(writes, images, tmp_path, monkeypatch) -> None:
    """Places are given column by column: whatever is there of them, all that is read later is the image's own."""
    real = Filler._files
    with monkeypatch.context() as patch:
        patch.setattr(Filler, "_files", lambda self: (Index(real(self)[0], []), real(self)[1]))
        patch.setattr(Column, "left", writes)
        died = False
        try:
            with filling(images, str(tmp_path / "cache"), 0):
                pass
        except KeyboardInterrupt:
            died = True
        assert died == (writes < 7)
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]
    cached = attach(images, str(tmp_path / "cache"))
    for index, name in enumerate(images.names):
        if name != "broken.jpg":
            assert np.array_equal(np.asarray(cached.decode(index)), np.asarray(images.decode(index))), name


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Lets so many images be written, and no more."""
    real, written = os.pwrite, []

    def write(*args) -> int:
        written.append(args)
        if len(written) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", write)


def test_a_disk_that_fills_up_is_an_error_and_a_filling_goes_on_once_there_is_room(
    images, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch, 3)
        with pytest.raises(CacheError, match=r"in .*cache/.* cannot be filled: .*No space left.*: free some room"):
            fill(images, tmp_path / "cache")
    seen = count_decodes(monkeypatch)
    assert fill(images, tmp_path / "cache") == ["broken.jpg"]
    assert len(seen) == 3
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, content, offset: 0)
        with pytest.raises(CacheError, match="No space left"):
            fill(images, tmp_path / "other")


def test_the_users_own_cache_gives_back_what_a_full_disk_did_not_hold(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with filling(images, AUTO, 0) as cached:
        check_images(cached)
    whole = cache_folder(images, AUTO) / "pixels.u8"
    size = whole.stat().st_size
    for name in ("1.jpg", "turned.jpg"):
        os.utime(images.root / name, ns=(1, 1))
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        with pytest.raises(CacheError), filling(images, AUTO, 0) as cached:
            check_images(cached)
    found = attach(images, AUTO)
    assert whole.stat().st_size == size
    assert [name for name in images.names if found.cache.has(name)] == ["0.png", "2.png", "3.jpg"]
    with filling(images, AUTO, 0) as cached:
        check_images(cached)
    found = attach(images, AUTO)
    for index, name in enumerate(images.names):
        assert name == "broken.jpg" or np.array_equal(found.stored(index), np.asarray(images.decode(index)))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(number: int, images, tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(fcntl, "lockf", partial(fail_with, number))
    with pytest.raises(CacheError, match=rf"{tmp_path}.* file system has no locks .*--cache DIR.*--cache off"):
        fill(images, tmp_path / "cache")
    assert "another process" not in caplog.text


def fail_with(number: int, *args) -> None:
    raise OSError(number, os.strerror(number))


def filled_beside(images: ImageList, place: Path, pipe) -> None:
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        seen = count_decodes(patch)
        patch.setattr(cache_lock.logger, "info", lambda text, *args: pipe.send(text % args))
        bad = fill(images, place)
    cached = attach(images, str(place))
    pixels = [np.asarray(cached.decode(index)) for index, name in enumerate(images.names) if name not in bad]
    pipe.send((seen, bad, pixels))


def test_of_two_that_fill_a_cache_the_second_waits_and_reads_what_the_first_wrote(images, tmp_path) -> None:
    place = tmp_path / "cache"
    here, there = multiprocessing.Pipe()
    second = multiprocessing.get_context("fork").Process(target=filled_beside, args=(images, place, there))
    with filling(images, str(place), 0) as cached:
        second.start()
        assert here.poll(60) and re.fullmatch(r"another process fills the cache .*: waiting for it", here.recv())
        assert not here.poll(0.2)
        assert [bad.name for bad in check_images(cached)] == ["broken.jpg"]
    assert here.poll(60)
    seen, bad, pixels = here.recv()
    second.join(60)
    assert second.exitcode == 0 and seen == bad == ["broken.jpg"]
    good = images.subset(set(images.names) - {"broken.jpg"})
    assert all(np.array_equal(found, np.asarray(good.decode(index))) for index, found in enumerate(pixels))


def test_an_image_above_the_limit_has_no_place_and_is_one_bad_image(images, tmp_path, monkeypatch) -> None:
    """Pillow raises an error of its own from twice the limit on, which is no OSError."""
    picture(images.root / "large.png", (50, 50), 5)
    whole = ImageList(images.root, sorted([*images.names, "large.png"]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("SPLITMASK_MAX_PIXELS", "1000")
    assert "large.png" in fill(whole, tmp_path / "cache")


@pytest.mark.parametrize("stamp", ["time", "size"])
def test_one_stamp_is_enough_to_tell_a_changed_image(stamp: str, tmp_path: Path) -> None:
    """Size and time of a file, and not both: an image without compression keeps its size, a copy may keep its time."""
    images, path = ImageList(tmp_path, ["a.bmp"]), tmp_path / "a.bmp"
    picture(path, (8, 8), 0)
    fill(images, tmp_path / "cache")
    before = path.stat()
    picture(path, (8, 8) if stamp == "time" else (9, 8), 1)
    os.utime(path, ns=(0, before.st_mtime_ns + (stamp == "time")))
    assert (path.stat().st_size == before.st_size) == (stamp == "time")
    fill(images, tmp_path / "cache")
    cached = attach(images, str(tmp_path / "cache"))
    assert cached.is_complete() and np.array_equal(np.asarray(cached.decode(0)), np.asarray(images.decode(0)))
