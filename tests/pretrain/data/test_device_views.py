"""Items whose crops are made on the device: the images of `Views`, sent by workers or lying there already."""

import os
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data import device_views
from pretrain.data.augment import PretrainAugment
from pretrain.data.cache import CachedImages, attach
from pretrain.data.cache_filling import filling
from pretrain.data.check import check_images
from pretrain.data.device_views import BoxViews, DeviceBatches, collate, resident_pixels
from pretrain.data.masking import beit_mask
from pretrain.data.sources import ImageList, open_source
from pretrain.data.views import CropAndPatches, Views
from pretrain.training.workers import Batches
from tests.helpers.paths import ROOT

CPU = torch.device("cpu")
KEYS = [[(0, 3, 0), (0, 1, 0), (5, 3, 0)], [(1, 0, 0), (1, 2, 0), (2, 7, 0)]]


def draw_ids(grid_size: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"ids": beit_mask(grid_size, rng)}


def build(images: ImageList, strong: bool = False) -> Views:
    return Views(images, 0, CropAndPatches(PretrainAugment(64, strong=strong), 16, draw_ids))


@pytest.fixture
def cached(image_folder, tmp_path) -> CachedImages:
    images = open_source(image_folder)
    with filling(images, str(tmp_path / "cache"), 0) as filled:
        assert not check_images(filled)
    return attach(images, str(tmp_path / "cache"))


def on_device(views: Views, resident: torch.Tensor | None = None, workers: int = 0) -> list[dict[str, Any]]:
    batches = Batches(BoxViews(views, resident is not None), KEYS, workers, collate_fn=collate)
    fabric: Any = SimpleNamespace(to_device=lambda batch: {**batch, "boxes": batch["boxes"].to(CPU)})
    return list(DeviceBatches(batches, fabric, 64, resident))


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in two) for one, two in pairs)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_views(cached, strong, workers) -> None:
    views = build(cached, strong)
    expected = list(Batches(views, KEYS, 0))
    assert same(on_device(views, workers=workers), expected)
    assert same(on_device(views, resident_pixels(views, CPU), workers), expected)


def test_a_large_box_is_resized_before_it_is_sent(image_folder, monkeypatch) -> None:
    views = build(open_source(image_folder))
    expected = list(Batches(views, KEYS, 0))
    monkeypatch.setattr(device_views, "_LARGE", 0)
    assert same(on_device(views), expected)
    assert BoxViews(views)[(0, 3, 0)]["boxes"].pixels.shape == (64 * 64, 3)


def test_cached_images_are_not_read_again(cached, monkeypatch) -> None:
    views = build(cached)
    resident = resident_pixels(views, CPU)
    assert resident is not None
    monkeypatch.setattr(CachedImages, "decode", partial(pytest.fail, "an image was read"))
    assert on_device(views, resident) and on_device(views)


def test_a_cache_that_was_cut_gives_way_to_the_files(cached) -> None:
    views = build(cached)
    expected = list(Batches(views, KEYS, 0))
    assert cached.cache is not None
    whole = cached.cache.folder / "pixels.u8"
    with open(whole, "r+b") as file:
        file.truncate(whole.stat().st_size // 2)
    views = build(attach(ImageList(cached.root, cached.names), str(cached.cache.folder.parent)))
    assert resident_pixels(views, CPU) is None
    assert same(on_device(views), expected)


def test_pixels_lie_on_the_device_only_where_all_are_cached_and_there_is_room(cached, monkeypatch) -> None:
    views = build(cached)
    assert cached.cache is not None
    place, monkeypatch_size = cached.place(0), 3 * sum(h * w for _, h, w in map(cached.place, range(len(cached))))
    assert len(place) == 3 and resident_pixels(views, CPU).numel() == monkeypatch_size
    assert resident_pixels(build(ImageList(cached.root, cached.names)), CPU) is None
    little = monkeypatch_size / device_views.RESIDENT_SHARE - 1
    monkeypatch.setattr(cached.cache, "pixels", partial(pytest.fail, "mapped before there was room"))
    for free, total in ((little, little), (monkeypatch_size / device_views.FREE_SHARE - 1, 100 * little)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, found=(free, total): found)
        assert resident_pixels(views, torch.device("cuda")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * little, 100 * little))
    assert device_views.fits_on_card(monkeypatch_size, torch.device("cuda"))
    index = np.lib.format.open_memmap(cached.cache.folder / "index.npy", mode="r+")
    index["ready"][2] = 0
    again = attach(ImageList(cached.root, cached.names), str(cached.cache.folder.parent))
    assert resident_pixels(build(again), CPU) is None


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("share", [1, 20])
def test_a_run_keeps_its_pixels_while_another_one_fills_its_cache(
    is_resident, share, cached, tmp_path, monkeypatch
) -> None:
    """Images that have changed are decoded anew by the other run: one with the same sides, one larger, or most."""
    root = tmp_path / "copy"
    shutil.copytree(cached.root, root)
    place = str(tmp_path / "cache")
    images = open_source(root)
    with filling(images, place, 0) as filled:
        assert not check_images(filled)
    views = build(attach(images, place))
    resident = resident_pixels(views, CPU) if is_resident else None
    expected = on_device(views, resident)
    for number, name in enumerate(images.names[: 1 + len(images) * share // 20]):
        with Image.open(root / name) as image:
            pixels = np.full((image.height + number % 2, image.width, 3), 200, np.uint8)
        Image.fromarray(pixels).save(root / name)
        os.utime(root / name, ns=(number + 1, number + 1))
    with filling(images, place, 0) as filled:
        assert same(on_device(views, resident), expected)  # in the middle, when changed images are in neither place
        assert not check_images(filled)
    assert same(on_device(views, resident), expected)
    if is_resident:
        assert same(on_device(views, resident, workers=1), expected)
    other = build(attach(images, place))
    assert not same(on_device(other, resident_pixels(other, CPU)), expected)


def test_nothing_is_said_of_pixels_that_are_only_read(cached) -> None:
    code = (
        "import sys, torch; from pretrain.data.cache import attach; from pretrain.data.device_views import *\n"
        "from pretrain.data.sources import open_source; from types import SimpleNamespace\n"
        "views = SimpleNamespace(images=attach(open_source(sys.argv[1]), sys.argv[2]))\n"
        "print(resident_pixels(views, torch.device('cpu')).shape)"
    )
    words = [sys.executable, "-W", "error::UserWarning", "-c", code, str(cached.root), str(cached.cache.folder.parent)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "torch.Size" in done.stdout, done.stderr


def test_an_image_that_cannot_be_read_any_more_is_named(image_folder) -> None:
    views = build(open_source(image_folder))
    (views.images.root / views.images.names[3]).unlink()
    with pytest.raises(ValueError, match="could be read when the run started"):
        on_device(views)


def test_fabric_and_the_loader_move_boxes_like_tensors(image_folder) -> None:
    from lightning_fabric.utilities import move_data_to_device

    batch = next(Batches(BoxViews(build(open_source(image_folder))), KEYS, 0, collate_fn=collate))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved["boxes"].pixels.device.type == "meta" and isinstance(moved["boxes"].table, np.ndarray)
    assert Image.fromarray(batch["boxes"].pixels[None].numpy()).mode == "RGB"
