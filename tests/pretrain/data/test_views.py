"""Views: what an item depends on, images that vanish during a run, and the items of a few images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.augment import PretrainAugment
from pretrain.data.check import check_images
from pretrain.data.decode import UnreadableImage
from pretrain.data.masking import beit_mask
from pretrain.data.sources import ImageList, open_source
from pretrain.data.views import CropAndPatches, Views, spread_items


def draw_ids(grid_size, rng):
    return {"ids": beit_mask(grid_size, rng)}


def build(image_folder, seed=0):
    return Views(open_source(image_folder), seed, CropAndPatches(PretrainAugment(64), 16, draw_ids))


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_an_item_depends_on_seed_epoch_and_index(image_folder):
    views = build(image_folder)
    item = views[(1, 2, 0)]
    assert item["image"].shape == (3, 64, 64) and item["image"].dtype == torch.uint8
    assert item["ids"].dtype == torch.int64 and item["ids"].max() < 16
    assert same(item, build(image_folder)[(1, 2, 0)])
    others = views[(2, 2, 0)], views[(1, 3, 0)], build(image_folder, seed=1)[(1, 2, 0)]
    assert not any(torch.equal(item["image"], other["image"]) for other in others)


class Painted(ImageList):
    """Images that are not files: the name is the colour."""

    def decode(self, index):
        if self.names[index] == "none":
            raise UnreadableImage("has no colour")
        return Image.new("RGB", (80, 70), self.names[index])


def test_another_source_of_pixels_is_one_class():
    source = Painted(Path("nowhere"), ["none", "red", "white"])
    assert [(bad.name, bad.reason) for bad in check_images(source)] == [("none", "has no colour")]
    views = Views(source, 0, CropAndPatches(PretrainAugment(64, flip=0.0), 16, draw_ids))
    assert views[(0, 2, 0)]["image"].unique().tolist() == [255]
    assert views[(0, 1, 0)]["image"].flatten(1).float().mean(1).tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="cannot be now \\(has no colour\\)"):
        views[(0, 0, 0)]


@pytest.mark.parametrize("content", [b"", None])
def test_an_image_that_cannot_be_read_any_more_is_named(image_folder, content):
    views = build(image_folder)
    path = views.images.path(views.images.names[3])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"when the run started and cannot be now \(.*\): .*--resume") as error:
        views[(0, 3, 0)]
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="cannot be now"):
        views.images.read(3)
    assert views.images.read(2).mode == "RGB"


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_spread_evenly(image_folder, workers):
    views = build(image_folder)
    items = list(spread_items(views, 5, workers))
    assert len(items) == 5
    assert all(same(item, views[(0, index, 0)]) for item, index in zip(items, (0, 2, 4, 7, 9), strict=True))
    batches = list(spread_items(views, 5, workers, epoch=7, batch_size=3))
    assert [len(batch["image"]) for batch in batches] == [3, 2]
    assert torch.equal(batches[1]["image"][0], views[(7, 7, 0)]["image"])
    assert np.array_equal(batches[1]["ids"][1], views[(7, 9, 0)]["ids"])
