"""The sources of images that are compared."""

import time

import torch

from pretrain.recipes import Recipe
from pretrain.training.distributed import make_fabric
from tools.benchmarks import loading

RECIPE = Recipe(model="vit_tiny", img_size=64, batch_size=4, vocab_size=64, drop_path=0.0)


def test_batches_of_all_sources_are_the_same_but_for_reduced_jpegs(tmp_path):
    fabric = make_fabric("32", "cpu")
    files, cached = loading.images_of(None, 4, tmp_path)
    found = {}
    for name, source in loading.SOURCES.items():
        images = cached if source.is_cached else files
        found[name] = next(loading.make_batches(source, RECIPE, images, fabric, 0, 1))["image"]
    same = [name for name, image in found.items() if torch.equal(image, found["files"])]
    assert same == ["files", "files, device crops", "cache", "cache, device crops"]


def test_speed_counts_what_comes_after_the_warm_batches():
    fabric = make_fabric("32", "cpu")
    used = []
    batches = iter([{"image": torch.zeros(4, 3, 2, 2)}] * 5)
    speed = loading.images_per_second(batches, lambda batch: (used.append(1), time.sleep(0.02)), 2, 3, fabric)
    assert len(used) == 5 and 4 / 0.02 * 0.2 < speed <= 4 / 0.02
