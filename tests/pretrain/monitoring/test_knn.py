"""Votes of the nearest neighbours, by hand."""

import math

import pytest
import torch

from pretrain.monitoring.knn import knn_votes


def test_votes_by_hand():
    known = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    votes = knn_votes(known, torch.tensor([0, 1, 1]), torch.tensor([[5.0, 0.0]]), num_classes=3, k=2, temperature=0.5)
    # exp(similarity / 0.5), over that of the nearest, whose similarity is 1.
    assert votes[0].tolist() == pytest.approx([1.0, math.exp((math.sqrt(0.5) - 1) / 0.5), 0.0])
    every = knn_votes(known, torch.tensor([0, 1, 1]), torch.tensor([[5.0, 0.0]]), num_classes=3, temperature=0.5)
    assert every[0, 1].item() == pytest.approx(math.exp((math.sqrt(0.5) - 1) / 0.5) + math.exp(-1 / 0.5))


@pytest.mark.parametrize("temperature", [1e-3, 0.0105])
def test_small_temperatures_let_the_nearest_decide(temperature):
    known = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.2]])
    votes = knn_votes(known, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]]), 2, temperature=temperature)
    assert votes.isfinite().all() and votes[0].argmax() == 1
