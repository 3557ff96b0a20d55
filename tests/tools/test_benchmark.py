"""tools/benchmark.py: both models are what they claim to be, and options are checked."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.helpers.paths import ROOT
from tools.benchmarks import backbone


@pytest.mark.detectron2
@pytest.mark.parametrize("case", backbone.CASES.values(), ids=str)
def test_both_models_have_the_same_parameters(case):
    ours, theirs = (backbone.build(whose, "vit_tiny", 64, **case) for whose in ("ours", "detectron2"))
    shapes = [{n: tuple(p.shape) for n, p in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    with torch.no_grad():
        theirs.load_state_dict(ours.state_dict())
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_a_step_runs():
    for precision in ("32", "bf16"):
        backbone.make_step("ours", "vit_tiny", 64, 1, precision, backbone.CASES["windows"])()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["backbon"], "unknown benchmark 'backbon': did you mean 'backbone'"),
        (["backbone", "--model", "vit_smal"], "did you mean 'vit_small'"),
        (["pretrain", "--precision", "16"], "unknown precision '16'"),
    ],
)
def test_wrong_options(argv, message):
    result = subprocess.run([sys.executable, "tools/benchmark.py", *argv], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
