"""mkdocs calls this before it reads the pages: recipes.md is made from the dataclasses, which hold each value."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = "recipes.md"
OWN = "own"


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated page to the files of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=recipes_page()))
    return files


def recipes_page() -> str:
    """Returns the page of all pre-training, classification and detection values, as Markdown."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from det_configs.common.recipe import DetRecipe
    from pretrain.recipes import RECIPES, Recipe
    from tools.classification.recipes import RECIPES as CLS_RECIPES
    from tools.classification.recipes import ClsRecipe

    parts = [
        "# Recipes",
        "Made from the code when these pages are built. `tools/pretrain.py --help` lists the same values, with the "
        "defaults alone.",
        "## Pre-training",
        "Names for `--recipe`, and where each differs from the defaults below. The learning rate that is used is "
        "base_lr x batch_size / 2048.",
        _recipes({name: (about, recipe) for name, (about, recipe) in RECIPES.items()}),
        "### Values",
        "Each is an option: `--batch-size 512`.",
        _values(Recipe),
        "## Classification",
        "Names for `--recipe` of `tools/train_cls.py`.",
        _recipes(CLS_RECIPES),
        "### Values",
        _values(ClsRecipe),
        "## Detection",
        "Values of the files in `det_configs/`; on the command line of `tools/train_det.py` as `name=value`.",
        _values(DetRecipe),
    ]
    return "\n\n".join(parts) + "\n"


def _recipes(recipes: dict[str, tuple[str, Any]]) -> str:
    rows = ["| name | for | differs by |", "| :--- | :--- | :--- |"]
    for name, (about, recipe) in recipes.items():
        fields = dataclasses.fields(recipe)
        own = [f"{f.name} {_shown(getattr(recipe, f.name))}" for f in fields if getattr(recipe, f.name) != f.default]
        differs = "what it derives from images and machine: `--plan` says it" if name == OWN else ", ".join(own)
        rows.append(f"| `{name}` | {_cell(about)} | {differs or 'nothing'} |")
    return "\n".join(rows)


def _values(recipe: type) -> str:
    rows = ["| value | default | choices | meaning |", "| :--- | :--- | :--- | :--- |"]
    for field in dataclasses.fields(recipe):
        choices = ", ".join(field.metadata["choices"] or ())
        rows.append(f"| `{field.name}` | {_shown(field.default)} | {choices} | {_cell(field.metadata['help'])} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
