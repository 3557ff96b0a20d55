"""tools/train_seg.py as a user runs it, with a tiny encoder."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.in_process import run_tool
from tools import train_seg

TINY = [
    "model.backbone.embed_dim=24",
    "model.backbone.depth=2",
    "model.backbone.out_channels=8",
    "model.decode_head.channels=8",
    "model.backbone.drop_path_rate=0.2",  # randomness that a resume must restore
]


def command(*args: object) -> list[str]:
    return [sys.executable, "tools/train_seg.py", "seg_configs/demo.py", *TINY, *map(str, args)]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return run_tool(train_seg.main, "seg_configs/demo.py", *TINY, *args)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2 and len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    return errors[0]
