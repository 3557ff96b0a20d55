"""The ways to make a step that are compared."""

import pytest

from pretrain.methods.build import build_sample
from pretrain.recipes import Recipe
from pretrain.training.distributed import make_fabric
from tools.benchmarks import steps

RECIPE = Recipe(model="vit_tiny", img_size=64, batch_size=4, vocab_size=64, drop_path=0.0)


def test_ways_make_the_same_step(monkeypatch):
    """What is compared does the same work: the losses of three steps are equal but for rounding."""
    compiled = []
    # A graph's step as well, which runs without one here; what a compiler makes of blocks is tested with them.
    monkeypatch.setattr(steps, "compile_blocks", compiled.append)
    monkeypatch.setattr(steps, "WAYS", {name: steps.Way(way.values, way.fused) for name, way in steps.WAYS.items()})
    method, fabric = build_sample(RECIPE), make_fabric("32", "cpu")
    made, reasons = steps.make_steps(method, RECIPE, fabric)
    assert not reasons and len(compiled) == 2
    batch, losses = steps.random_batch(RECIPE, method.encoder.grid_size), {}
    for name, step in made.items():
        losses[name] = [step(batch)["loss"].item() for _ in range(3)]
        assert losses[name] == pytest.approx(losses["eager"], rel=1e-4), name
    assert losses["eager"][2] < losses["eager"][0]
