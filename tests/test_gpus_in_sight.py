"""Tests with the mark `gpu` see the machine's GPUs under pytest-xdist too, all others see none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = "GPUS_IN_SIGHT"
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(EXPECTED not in os.environ, reason="run by the test below, in a worker of its own")
def test_of_a_worker(request):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    (ours,) = (plugin for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "_show_gpus"))
    ours._show_gpus(True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ[EXPECTED]
    ours._show_gpus(False)


def test_what_the_machine_shows_reaches_a_test():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1"]
    test = f"{Path(__file__).relative_to(ROOT)}::test_of_a_worker"
    environment = os.environ | {EXPECTED: "7", "CUDA_VISIBLE_DEVICES": "7"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*words, test], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
