"""The smallest run of each training tool, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import cls_data, det_data, seg_data
from tests.helpers.paths import ROOT
from tests.helpers.seg_tool import TINY as TINY_SEGMENTOR

WORDS = {
    "pretrain": ["--recipe", "tiny", "--save-every", "2", "--log-every", "1"],
    "train_det": [
        *("det_configs/demo.py", "--engine", "torchvision", "--weights", "none", "--img-size", "64"),
        *("--batch-size", "2", "--save-every", "2", "--log-every", "1", "drop_path=0.2", "out_channels=16"),
        *("box_head_width=16", "mask_head_width=16", "mask_head_convs=1", "rpn_post_nms_train=50"),
        *("rpn_post_nms_test=50", "detections_per_image=5", "score_threshold=0.0"),
    ],
    "train_seg": [
        *("seg_configs/demo.py", *TINY_SEGMENTOR, "--weights", "none", "--img-size", "64"),
        *("--batch-size", "2", "--save-every", "2", "--log-every", "1"),
    ],
    "train_cls": [
        *("--recipe", "tiny", "--weights", "none", "--batch-size", "4"),
        *("--save-every", "2", "--log-every", "1"),
    ],
    "probe": ["--weights", "none", "--knn", "3"],
}
TOOLS = tuple(WORDS)
ARTEFACTS = {"pretrain": "encoder.safetensors"}
"""What a finished run ends with, where that is not results.json."""

_NEEDS = {"train_seg": "mmcv", "train_cls": "timm", "probe": "timm"}


def skip_without_its_library(tool: str) -> None:
    """Skips the test where the extra that the tool needs is not installed."""
    if tool in _NEEDS and find_spec(_NEEDS[tool]) is None:
        pytest.skip(f"{_NEEDS[tool]}, which {tool} needs, is not installed")


def make_inputs(tool: str, root: Path) -> Path:
    """Writes what the tool trains on, and returns its folder."""
    if tool == "pretrain":
        rng = np.random.default_rng(0)
        root.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (70, 80 + i, 3), dtype=np.uint8)).save(root / f"{i:02d}.png")
    elif tool == "train_det":
        det_data.write_root(root)
    elif tool == "train_seg":
        seg_data.make_data(root, count=6, size=(80, 72))
        (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    else:
        cls_data.write_root(root)
    return root


def command(tool: str, data: Path, output: Path, *words: object) -> list[str]:
    """Returns the command line of a run."""
    return [
        *(sys.executable, str(ROOT / f"tools/{tool}.py"), *WORDS[tool]),
        *("--data", str(data), "--output", str(output), *map(str, words)),
    ]


def start(words: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts it in the repository's root, one thread, its output in pipes."""
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=whole, **{**pipes, **options})


def error_of(stderr: str) -> str:
    """Returns the one error line; a traceback, or another line that looks like one, fails."""
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in stderr, stderr
    return lines[0]


def processes_with(mark: str) -> list[int]:
    """Returns the ids of the living processes whose command line or environment holds a text."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            held = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has gone, or is somebody else's
            continue
        if mark.encode() in held and state != "Z":
            found.append(int(folder.name))
    return found
