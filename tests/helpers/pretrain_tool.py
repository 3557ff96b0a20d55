"""tools/pretrain.py as a user runs it."""

import os
import subprocess
import sys

import torch
from safetensors import safe_open

from tests.helpers.in_process import run_tool
from tests.helpers.paths import TOOLS
from tools import pretrain

OPTIONS = ["--recipe", "tiny", "--steps", "6", "--save-every", "2", "--log-every", "2", "--workers", "0"]
ENCODER = "encoder.safetensors"


def command(*words):
    return [sys.executable, str(TOOLS / "pretrain.py"), *map(str, words)]


def run(*words, threads=1):
    """In this process, unless another number of threads is asked for."""
    if threads == torch.get_num_threads():
        return run_tool(pretrain.main, *words)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command(*words), capture_output=True, text=True, env=env, timeout=120)


def error_of(result):
    """The one error line; nothing else may look like one."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def state_of(folder):
    """The checksum of all tensors after step 6; safetensors writes the entries of its metadata in any order."""
    with safe_open(folder / "checkpoints/step_00000006.safetensors", framework="pt") as file:
        return file.metadata()["sha256"]
