"""Seconds and bytes of a step, by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.training import measuring
from pretrain.training.distributed import make_fabric
from pretrain.training.measuring import median_step, memory_of_step, saved_bytes, time_steps


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 20, bias=False), nn.Linear(20, 1, bias=False)
        self.calls = 0

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        time.sleep(0.05 if self.calls > 1 else 0.2)
        return {"loss": self.second(self.first(batch).exp()).mean()}


def test_bytes_by_hand() -> None:
    model = TwoLayers()

    def forward(count: int) -> object:
        return model(torch.ones(count, 10, requires_grad=True))

    # Kept are the input (10) and the result of exp (20), which exp and the second layer share; no weight.
    assert saved_bytes(model, lambda: forward(3)) == 3 * 4 * (10 + 20)
    fixed, per_image = memory_of_step(model, forward)
    assert per_image == 4 * 30
    assert fixed == 4 * 4 * 220  # weights, gradients, two moments
    assert memory_of_step(model, forward, processes=2)[0] == 5 * 4 * 220
    model.first.requires_grad_(False)
    assert memory_of_step(model, forward)[0] == 4 * (220 + 3 * 20)


def test_the_first_step_is_not_counted() -> None:
    assert median_step([9.0, 2.0, 3.0]) == 2.5
    assert median_step([9.0]) == 9.0 and median_step([]) == 0.0
    model = TwoLayers()
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = time_steps(make_fabric(device="cpu"), model, optimizer, torch.ones(4, 10))
    assert model.calls == measuring.STEPS
    assert seconds == pytest.approx(0.05, abs=0.045)  # the first takes 0.2


def test_the_step_of_a_graph_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded step takes a fraction of an ordinary one: `--hours` would buy too few of them."""
    made = []

    class Recorded(measuring.StaticStep):
        def __call__(self, *args: Any, **more: Any) -> dict[str, torch.Tensor]:
            made.append(args)
            return super().__call__(*args, **more)

    class OfDictionaries(TwoLayers):
        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            return super().forward(batch["image"])

    monkeypatch.setattr(measuring, "StaticStep", Recorded)
    model = OfDictionaries()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    fabric, batch = make_fabric(device="cpu"), {"image": torch.ones(4, 10)}
    assert time_steps(fabric, model, optimizer, batch, static=True) > 0.04
    assert len(made) == model.calls == measuring.STEPS


def test_the_memory_of_a_process_is_more_than_its_libraries() -> None:
    assert 50e6 < measuring.peak_memory() < 100e9
