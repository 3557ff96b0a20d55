"""Every block of code in README and docs: commands are parsed by the tools' own parsers, programs run on tiny data."""

from __future__ import annotations

import configparser
import importlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pretrain.recipes import RECIPES
from tests.helpers import doc_blocks, in_process
from tests.helpers.doc_blocks import Block
from tests.helpers.paths import ROOT
from tools import cli

BLOCKS = [block for page in doc_blocks.PAGES for block in doc_blocks.blocks_of(page)]
ENTRY_POINTS = {"splitmask-pretrain": "tools.pretrain", "splitmask-convert": "tools.convert"}


def of_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def programs() -> list[object]:
    """Returns the blocks of python that run, under the marker that they name."""
    found = [block for block in of_language("python") if block.file is None or block.run is not None]
    return [
        pytest.param(block, marks=[getattr(pytest.mark, block.run)] if block.run else [], id=block.name)
        for block in found
    ]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def commands_of(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [argv for line in lines if (argv := shlex.split(line, comments=True))]


def without_prefix(argv: list[str]) -> list[str]:
    """Returns the command behind torchrun, docker and variables; torchrun's begins with the tool's path."""
    while re.match(r"[A-Z_]+=", argv[0]):
        argv = argv[1:]
    if argv[0] == "docker":
        return argv[argv.index("IMAGE") + 1 :]
    if argv[0] == "torchrun":
        return ["python", *(argv[next(i for i, word in enumerate(argv) if word.endswith(".py")) :])]
    return argv


def check_tool(module_name: str, argv: list[str]) -> None:
    module = importlib.import_module(module_name)
    parser = module.build_parser()
    if module_name == "tools.compare":  # passes on what is another tool's
        _, (tool, *rest) = parser.parse_known_args(argv)
        return check_tool(f"tools.{tool}", [*rest, "--weights", "none", "--output", "-"])
    rest, overrides = cli.take_overrides(parser, argv)
    parsed = parser.parse_args(rest)
    if overrides:
        assert module_name in ("tools.train_det", "tools.train_seg"), argv
    if getattr(parsed, "recipe", None) is not None:
        assert parsed.recipe in getattr(module, "RECIPES", RECIPES), argv
    for word in argv:
        if re.match(r"(det|seg)_configs/", word):
            assert (ROOT / word).is_file(), word


def check_pip(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for word in words:
        if word.startswith(("--", "git+https://github.com/")):
            continue
        match = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", word)
        assert match, f"pip install {word}"
        assert set((match[1] or "").split(",")) - {""} <= set(setup["options.extras_require"]), word


def check(argv: list[str]) -> None:
    """Fails for a command that does not exist as it stands there."""
    argv = without_prefix(argv)
    if argv[0] == "make":
        assert {word for word in argv[1:] if "=" not in word} <= targets(), argv
    elif argv[0] in ENTRY_POINTS:
        check_tool(ENTRY_POINTS[argv[0]], argv[1:])
    elif argv[:2] == ["pip", "install"]:
        check_pip(argv[2:])
    elif argv[0] == "python":
        assert (ROOT / argv[1]).is_file(), argv
        check_tool(argv[1].removesuffix(".py").replace("/", "."), argv[2:])
    else:
        assert argv == [".", ".venv/bin/activate"], f"no rule for {shlex.join(argv)}"


def test_every_block_is_of_a_language_that_is_checked() -> None:
    assert len(BLOCKS) > 25
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "bibtex", "text"}
    assert all(block.file for block in of_language("yaml"))


@pytest.mark.parametrize("block", of_language("bash"), ids=lambda block: block.name)
def test_commands_exist(block: Block) -> None:
    for argv in commands_of(block.code):
        check(argv)


@pytest.mark.parametrize("line", ["make nothing", "python tools/pretrain.py --recipe smal --data A --output B"])
def test_what_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(shlex.split(line))


def test_the_readme_names_make_targets_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z-]+)", readme))
    named |= {argv[1] for block in of_language("bash") for argv in commands_of(block.code) if argv[0] == "make"}
    assert {"demo", "test", "lint", "venv", "docs"} <= named <= targets()


@pytest.mark.parametrize("block", [b for b in of_language("bash") if b.run is not None], ids=lambda block: block.name)
def test_commands_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    doc_blocks.prepare(block, tmp_path)
    for argv in commands_of(block.made_small()):
        module = importlib.import_module(argv[1].removesuffix(".py").replace("/", "."))
        words = [str(ROOT / word) if re.match(r"(det|seg)_configs/", word) else word for word in argv[2:]]
        done = in_process.run_tool(module.main, *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", programs())
def test_programs_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = doc_blocks.prepare(block, tmp_path)
    exec(compile(block.made_small(), block.name, "exec"), namespace)
    for line in block.code.splitlines():  # what the comment says of a result
        if match := re.match(r'torch.save\(.*, "(.*)"\)|cfg.(?:OUTPUT_DIR|work_dir) = "(.*)"', line):
            assert os.path.exists(match[1] or match[2])
    if "label_of" in namespace:  # categories 3 and 7; 0 is the background
        assert namespace["label_of"] == {3: 1, 7: 2}


def test_yaml_is_yaml() -> None:
    for block in of_language("yaml"):
        assert isinstance(yaml.safe_load(block.code), dict)


@pytest.mark.detectron2
def test_the_lazy_config_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As detectron2's tool reads it: one step, with all parameters of the encoder in the optimizer."""
    import torch
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import DatasetCatalog
    from detectron2.utils.events import EventStorage

    (block,) = [block for block in BLOCKS if block.file == "splitmask_lazy.py"]
    monkeypatch.chdir(tmp_path)
    doc_blocks.prepare(block, tmp_path)
    (tmp_path / "splitmask_lazy.py").write_text(block.code)
    for name in ("lazy_train", "lazy_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
    cfg = LazyConfig.load("splitmask_lazy.py")
    cfg.dataloader.train.num_workers, cfg.dataloader.train.total_batch_size = 0, 2
    cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [64]
    cfg.model.proposal_generator.pre_nms_topk = cfg.model.proposal_generator.post_nms_topk = (20, 20)
    cfg.model.roi_heads.batch_size_per_image = 8
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(loss) for loss in losses.values())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} == held
    schedule = instantiate(cfg.lr_multiplier)
    assert [round(schedule(where), 4) for where in (0.0, 0.5, 0.8, 0.95)] == [0.001, 1.0, 0.1, 0.01]


def test_messages_of_the_troubleshooting_page_are_in_the_code() -> None:
    """Each quoted piece of a message stands in a text of the product."""
    texts = "\n".join(_texts(ROOT / folder) for folder in ("splitmask_backbones", "pretrain", "tools"))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        piece
        for row in re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
        for piece in re.findall(r"`([^`]+)`", row)
    ]
    assert len(quoted) > 20
    missing = [piece for piece in quoted if piece not in texts]
    assert not missing, json.dumps(missing, indent=1)


def _texts(folder: Path) -> str:
    """Returns the text constants of all modules, with those of an f-string in one piece."""
    import ast

    lines = []
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in documentation:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)
