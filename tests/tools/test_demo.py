"""tools/demo.py: wrong input, and the whole way on a small folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.in_process import run_tool
from tests.helpers.paths import ROOT
from tools import demo as demo_tool


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/demo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_wrong_length_is_an_option_error() -> None:
    done = run_tool(demo_tool.main, "--det-steps", "0")
    assert done.returncode == 2 and done.stderr.startswith("error: argument --det-steps: must be at least 1")


def test_wrong_input_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    missing = demo("--data", str(tmp_path / "nothing"), "--output", str(tmp_path / "out"))
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert missing.stderr.startswith(f"error: --data {tmp_path / 'nothing'} does not exist")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_demo_on_a_small_folder(tmp_path: Path) -> None:
    from tools.demo_data import DemoData, make_demo_data

    data = make_demo_data(tmp_path / "data", DemoData(10, 3, 1, img_size=96))
    budget = ["--pretrain-steps", "2", "--det-steps", "2", "--seg-steps", "2", "--workers", "0"]
    arguments = ["--data", str(data / "coco"), "--output", str(tmp_path / "out"), *budget]
    done = demo(*arguments)
    assert done.returncode == 0, done.stderr
    assert "| SplitMask |" in (tmp_path / "out" / "table.md").read_text()
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert pictures == {"loss_curves.png", "words.png", "detections.png", "segmentations.png"}
    again = demo(*arguments)
    assert again.returncode == 0
    assert "$ python" not in again.stdout  # nothing is trained a second time
    other = demo(*arguments, "--seed", "1")
    assert other.returncode == 2
    assert other.stderr.startswith(
        f"error: {tmp_path / 'out'} holds a run with other settings: --seed was 0 and is now 1"
    )
