"""Points of the schedules, computed by hand."""

import math

import pytest

from pretrain.training.schedule import warmup, warmup_cosine, warmup_poly, warmup_step


def test_warmup_cosine():
    points = [warmup_cosine(step, 110, 10, 0.1) for step in (0, 4, 9, 10, 60, 110)]
    assert points == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.55, 0.1])
    assert warmup_cosine(35, 110, 10, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_warmup_step():
    assert [warmup_step(s, (27, 33), 2) for s in (0, 1, 26, 27, 33)] == pytest.approx([0.5, 1, 1, 0.1, 0.01])


def test_warmup_poly():
    assert [warmup_poly(s, 20, 10) for s in (0, 9, 10, 15, 20)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


def test_no_warmup():
    assert warmup(0, 0) == 1.0
    assert warmup_cosine(0, 10, 0) == 1.0
