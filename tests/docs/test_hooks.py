"""The page of recipes, which docs/hooks.py makes when the site is built."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

from pretrain.recipes import RECIPES, Recipe
from tests.helpers.paths import ROOT


def page() -> str:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.recipes_page()


def test_every_recipe_and_every_value_stands_there() -> None:
    text = page()
    for name, (about, _) in RECIPES.items():
        assert f"| `{name}` | {about} |" in text
    for field in dataclasses.fields(Recipe):
        assert f"| `{field.name}` |" in text
    assert re.search(r"\| `ade20k` .*model vit_base, epochs 21000 \|", text)
    assert "| `batch_size` | 2048 |" in text


def test_no_page_of_docs_copies_it() -> None:
    assert not (ROOT / "docs" / "recipes.md").exists()
