"""tools/pretraining/record.py: the recipe of a start or a resume; tests/tools/test_pretrain.py has config.json."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from pretrain.own_recipe import OWN
from pretrain.recipes import get_recipe
from splitmask_backbones.errors import UserError
from tools.pretraining.record import recipe_of, with_precision

TINY = get_recipe("tiny")
BEFORE = {"recipe": "tiny", "values": asdict(replace(TINY, base_lr=0.5, steps=7))}


def test_a_start_has_the_recipe_and_what_is_given() -> None:
    assert recipe_of("tiny", TINY, {"batch_size": 3}, None) == replace(TINY, batch_size=3)


def test_a_resume_keeps_the_values_of_the_run_where_they_are_omitted() -> None:
    assert recipe_of("tiny", TINY, {"batch_size": 3}, BEFORE) == replace(TINY, base_lr=0.5, steps=7, batch_size=3)


def test_a_resume_by_epochs_of_a_run_by_steps_differs_in_the_length_alone() -> None:
    found = recipe_of("tiny", TINY, {"epochs": 2}, BEFORE)
    assert found == replace(TINY, base_lr=0.5, epochs=2, steps=None)


def test_a_resume_under_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="--recipe tiny and not small"):
        recipe_of("small", get_recipe("small"), {}, BEFORE)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, "bf16"),
        ({"architecture": "x86_64", "avx512_bf16": False}, "32"),
        ({"architecture": "aarch64"}, "32"),  # not known
    ],
)
def test_only_own_takes_the_precision_of_the_machine(flags, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    for given in ("32", "bf16"):
        assert with_precision("tiny", replace(TINY, precision=given), "cpu").precision == given
        assert with_precision(OWN, replace(get_recipe(OWN), precision=given), "cpu").precision == expected


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16"), (False, "32")])
def test_a_card_that_only_emulates_bf16_trains_in_float32(
    units: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: units or including_emulation)
    assert with_precision(OWN, get_recipe(OWN), "cuda").precision == expected
