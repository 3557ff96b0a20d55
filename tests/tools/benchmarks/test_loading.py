"""The sources of images that are compared."""

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pretrain.methods.build import build_sample
from pretrain.methods.qk_limit import QueryKeyLimit
from pretrain.recipes import Recipe
from pretrain.training import loop
from pretrain.training.distributed import make_fabric
from tools.benchmarks import loading, steps

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


@pytest.mark.parametrize("way", ["eager", "two micro-batches", "CUDA graph"])
def test_a_run_is_made_by_the_loop_that_trains(way, tmp_path, monkeypatch, capsys):
    """Each step is approved, the next batch is asked for before, and the recipe's limit is held; the weights move."""
    fabric, calls = make_fabric("32", "cpu"), Counter()

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*args):
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    counted(loop, "agree")
    counted(loop._Ahead, "fetch")
    counted(QueryKeyLimit, "after_step")
    recipe = replace(RECIPE, qk_limit=3.0)
    step = steps.BareStep(steps.WAYS[way], build_sample(recipe), recipe, fabric)
    before = {name: value.clone() for name, value in step.method.state_dict().items() if "pos" in name}
    files, _ = loading.images_of(None, 4, tmp_path)
    started = time.perf_counter()
    speed = loading.trained_per_second(step, loading.SOURCES["files, device crops"], files, fabric, 0, 2, 3)
    assert speed > 3 * 4 / (time.perf_counter() - started), "the first two steps count"
    assert calls == {"agree": 5, "fetch": 4, "after_step": 5}
    assert any(not torch.equal(value, step.method.state_dict()[name]) for name, value in before.items())
    assert capsys.readouterr().out == ""


def test_speed_counts_what_comes_after_the_warm_batches():
    fabric = make_fabric("32", "cpu")
    used = []
    batches = iter([{"image": torch.zeros(4, 3, 2, 2)}] * 5)
    speed = loading.images_per_second(batches, lambda batch: (used.append(1), time.sleep(0.02)), 2, 3, fabric)
    assert len(used) == 5 and 4 / 0.02 * 0.2 < speed <= 4 / 0.02
