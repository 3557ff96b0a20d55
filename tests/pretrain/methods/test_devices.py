"""Steps on a device that only knows shapes: nothing mixes devices, and the host waits for nothing."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from torch.utils import backend_registration

from tests.helpers.paths import ROOT


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot register a device that is written in Python",
)
def test_a_step_of_each_method_asks_the_device_for_nothing():
    methods = ["splitmask", "beit", *(["dino"] if find_spec("lightly") else [])]
    words = [sys.executable, str(ROOT / "tests/helpers/fake_card.py"), *methods]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # a program of its own: torch has one such device for good
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
