"""Jobs of a plan, held against the tools that they name."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.helpers.paths import ROOT
from tools.running.job import Job


def check(job: Job) -> None:
    """Parses a job's command line with its tool."""
    name = job.tool.removesuffix(".py")
    module = importlib.import_module(f"tools.{name.replace('/', '.')}")
    argv = job.full_argv()
    if name == "train_det":
        from tools import cli
        from tools.detection.config import given_values, load_config

        parser = module.build_parser()
        rest, overrides = cli.take_overrides(parser, argv)
        args = parser.parse_args(rest)
        assert (ROOT / args.config).is_file()
        load_config(args.config).override(given_values(vars(args), overrides))
    elif name == "train_seg":
        args = module.parse_args(argv)
        assert (ROOT / args.config).is_file()
    else:
        args = module.build_parser().parse_args(argv)
        if hasattr(module, "RECIPES"):
            assert args.recipe in module.RECIPES
    if job.with_output:
        assert Path(args.output) == job.folder
