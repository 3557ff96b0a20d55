"""Steps of a plan, held against the tools that they name."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.helpers.paths import ROOT
from tools.reproduction.sets import SETS
from tools.reproduction.step import LIST, Step


def check(step: Step) -> str | None:
    """Parses a step's words with its tool; returns why that is not possible yet, else None."""
    if step.tool == LIST:
        assert step.words[0] in SETS
        return None
    name = step.tool.removesuffix(".py")
    if not (ROOT / "tools" / step.tool).is_file():
        assert name in ("train_cls", "probe")
        return f"tools/{step.tool} is not there yet"
    module = importlib.import_module(f"tools.{name}")
    words = step.arguments()
    if name == "train_det":
        from tools.detection.config import given_values, load_config, take_overrides

        parser = module.build_parser()
        rest, overrides = take_overrides(parser, words)
        args = parser.parse_args(rest)
        assert (ROOT / args.config).is_file()
        load_config(args.config).override(given_values(vars(args), overrides))
    elif name == "train_seg":
        args = module.parse_args(words)
        assert (ROOT / args.config).is_file()
    else:
        parser = module.build_parser()
        if "--tokenizer-weights" in words and "--tokenizer-weights" not in parser._option_string_actions:
            return "tools/pretrain.py has no --tokenizer-weights yet"
        args = parser.parse_args(words)
        if name != "convert":
            assert getattr(args, "recipe", "tiny") in module.RECIPES if hasattr(module, "RECIPES") else True
    if step.with_output:
        assert Path(args.output) == step.folder
    return None
