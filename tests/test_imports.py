"""Who imports whom, read from the sources: one way, no circle; and which test names which module.

`splitmask_backbones` <- `pretrain` <- `det_configs`, `seg_configs` <- `tools`: what stands on the right may import what
stands on the left. Imports within functions count, those under TYPE_CHECKING do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.sources import tracked

LAYERS = {"splitmask_backbones": 0, "pretrain": 1, "det_configs": 2, "seg_configs": 2, "tools": 3}
ADAPTERS = {
    "adapters",
    "detectron2",
    "mmseg",
    "mmseg_resize",
    "mmseg_slide",
    "_mmcv_stub",
    "_yapf_cache",
    "torchvision",
    "torchvision_masks",
    "timm",
}
TASKS = {"detection", "segmentation", "classification"}
NOT_FOR = {
    # pretrain: room (or recipes.py) -> what it must not import
    "training": {"methods", "monitoring", "tokenizers", "recipes"},
    "data": {"methods", "monitoring", "tokenizers", "recipes"},
    "recipes": {"methods", "monitoring", "tokenizers"},
    "tokenizers": {"methods", "monitoring"},
    "methods": {"monitoring"},
    # tools: the three tasks do not know each other, and what they share knows none of them
    **{task: TASKS - {task} for task in TASKS},
    **dict.fromkeys(("finetuning", "frozen", "common"), TASKS),
}


def module_of(path: str) -> str:
    """Returns the dotted name of a file: that of the package for its `__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


FILES = {module_of(path): path for path in tracked() if path.endswith(".py")}
PRODUCT = {module: path for module, path in FILES.items() if module.split(".")[0] in LAYERS}
TESTS = {module: path for module, path in FILES.items() if module.split(".")[0] == "tests"}


def names_imported(source: str, module: str = "") -> Iterator[str]:
    """Yields `a.b` for `import a.b`, `a.b.c` for `from a.b import c`, and the literal of `import_module("a.b")`."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


@cache
def imports_of(module: str) -> frozenset[str]:
    """Returns the modules of this repository that a module of it imports."""
    names = names_imported((ROOT / FILES[module]).read_text(encoding="utf-8"), module)
    # The last part may be a name in a module and not a module.
    found = {name if name in FILES else name.rpartition(".")[0] for name in names}
    return frozenset(found & FILES.keys() - {module})


def rule_against(importer: str, imported: str) -> str | None:
    """Returns the rule that an import breaks, or None."""
    (top, *rooms), (other_top, *other_rooms) = importer.split("."), imported.split(".")
    if other_top == "tests":
        return "products do not import tests"
    if top != other_top:
        return None if LAYERS[top] > LAYERS[other_top] else f"{other_top} stands above or beside {top}"
    room, other = (rooms or [""])[0], (other_rooms or [""])[0]
    if top == "splitmask_backbones" and room not in {*ADAPTERS, "convert"} and other in {*ADAPTERS, "convert"}:
        return "the core knows neither adapters nor conversions"
    if other in NOT_FOR.get(room, ()):
        return f"{room} does not know {other}"
    return None


def broken() -> dict[str, str]:
    """Returns "importer -> imported" -> the rule that it breaks, for all modules of the product."""
    pairs = ((module, imported) for module in PRODUCT for imported in sorted(imports_of(module)))
    return {f"{a} -> {b}": rule for a, b in pairs if (rule := rule_against(a, b)) is not None}


def named(module: str) -> bool:
    """Returns whether a test names a module: its dotted name or its path in a text, or by importing it."""
    pattern = re.compile(rf"(?<![\w.]){re.escape(module)}(?!\w)|{re.escape(PRODUCT[module])}")
    here = module_of(Path(__file__).relative_to(ROOT).as_posix())
    others = {test: path for test, path in TESTS.items() if test != here}
    return any(
        module in imports_of(test) or pattern.search((ROOT / path).read_text(encoding="utf-8"))
        for test, path in others.items()
    )


def unnamed() -> list[str]:
    """Returns the modules that no test names; packages, delta files and mmengine's configs need none of their own."""
    delta = re.compile(r"seg_configs/.*|det_configs/[^/]+\.py|.*__init__\.py")
    return [module for module, path in PRODUCT.items() if not delta.fullmatch(path) and not named(module)]


def test_imports_run_one_way() -> None:
    assert not broken(), "\n".join(f"{pair}: {rule}" for pair, rule in broken().items())


def test_every_module_is_named_by_a_test() -> None:
    assert not unnamed(), "\n".join(["no test names", *unnamed()])


def test_there_is_no_circle() -> None:
    graph = {module: imports_of(module) - {"tests"} for module in PRODUCT}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_no_test_imports_another_test() -> None:
    for test, path in TESTS.items():
        for name in names_imported((ROOT / path).read_text(encoding="utf-8"), test):
            last = name.split(".")
            assert last[0] != "tests" or last[1] == "helpers", f"{path} imports {name}"
            assert not any(part.startswith("test_") or part == "conftest" for part in last[:-1]), f"{path}: {name}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pretrain.recipes", {"pretrain.recipes"}),
        ("def f():\n    from pretrain import recipes as r", {"pretrain.recipes"}),
        ("from pretrain.recipes import A, B", {"pretrain.recipes.A", "pretrain.recipes.B"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
        ("import_module('pretrain.recipes')", {"pretrain.recipes"}),
        ("from . import sources\nfrom ..methods import beit", {"pretrain.data.sources", "pretrain.methods.beit"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, expected: set[str]) -> None:
    assert set(names_imported(source, "pretrain.data.views")) == expected


@pytest.mark.parametrize(
    ("importer", "imported", "rule"),
    [
        ("splitmask_backbones.vit", "pretrain.recipes", "stands above"),
        ("pretrain.data.views", "tools.cli", "stands above"),
        ("det_configs.demo", "seg_configs.demo", "or beside"),
        ("splitmask_backbones.vit", "splitmask_backbones.mmseg", "neither adapters"),
        ("pretrain.training.loop", "pretrain.methods.beit", "training does not know methods"),
        ("pretrain.methods.build", "pretrain.monitoring.knn", "methods does not know monitoring"),
        ("tools.detection.run", "tools.segmentation.run", "detection does not know segmentation"),
        ("tools.cli", "tests.helpers.paths", "tests"),
        ("tools.cli", "pretrain.recipes", None),
        ("splitmask_backbones.mmseg", "splitmask_backbones.vit", None),
        ("pretrain.monitoring.monitor", "pretrain.methods.build", None),
    ],
)
def test_the_rules(importer: str, imported: str, rule: str | None) -> None:
    found = rule_against(importer, imported)
    assert found is None if rule is None else rule in (found or "")
