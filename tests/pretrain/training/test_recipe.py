"""Checked values: what a rule refuses and how it says so, and lengths that replace each other."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from pretrain.training.recipe import ABOVE_ZERO, BELOW_ONE, CheckedRecipe, parse_field, value


@dataclass(frozen=True)
class Example(CheckedRecipe):
    batch_size: int = value(8, "", low=1)
    epochs: int | None = value(3, "", low=1)
    steps: int | None = value(None, "", low=1)
    lr: float = value(0.1, "", low=ABOVE_ZERO)
    drop: float = value(0.0, "", low=0, high=BELOW_ONE)
    share: float = value(0.5, "", low=0, high=1)
    kind: str = value("fast", "", choices=("fast", "slow"))
    scales: tuple[float, ...] = value((1.0, 2.0), "", low=0.5, high=4)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"lr": 0.0}, "--lr 0.0 must be above 0$"),
        ({"drop": 1.0}, "--drop 1.0 must be at least 0 and below 1"),
        ({"share": 1.5}, "--share 1.5 must be at least 0 and at most 1"),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1$"),
        ({"batch_size": True}, "--batch-size True: expected an integer"),
        ({"kind": "fats"}, "unknown kind 'fats': did you mean 'fast'"),
        ({"scales": (1.0, 5.0)}, "must be at least 0.5 and at most 4"),
        ({"epochs": None}, "give one of them"),
        ({"stepz": 3}, "unknown recipe value 'stepz': did you mean 'steps'"),
    ],
)
def test_what_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        Example().override(values)


def test_limits_themselves():
    assert Example(drop=0.999, share=1, lr=1e-9).share == 1.0
    assert isinstance(Example(share=1).share, float) and Example(scales=[1, 2]).scales == (1.0, 2.0)


def test_steps_replace_epochs_and_the_lr_follows_the_batch():
    assert (Example().total_steps(5), Example().override({"steps": 7}).total_steps(5)) == (15, 7)
    assert Example().override({"batch_size": 16}).lr == 0.2
    assert Example().override({"batch_size": 16, "lr": 0.3}).lr == 0.3


def test_text_of_a_command_line():
    field = {field.name: field for field in fields(Example)}
    assert parse_field(field["scales"], "(0.5,3)") == (0.5, 3.0)
    assert parse_field(field["steps"], "none") is None
    with pytest.raises(ValueError, match="lr=fast: expected a number"):
        parse_field(field["lr"], "fast")
