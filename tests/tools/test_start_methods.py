"""Data workers that are not forked (Python 3.14's default on Linux), tools started with -m, screens that show ASCII."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.small_runs import ARTEFACTS, TOOLS, command, make_inputs, skip_without_its_library, start

COMMANDS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if "cli.run(main)" in path.read_text())
FORKSERVER = """
import multiprocessing
multiprocessing.set_start_method("forkserver", force=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_under_forkserver_gives_the_bytes_of_no_workers(tool: str, tmp_path: Path) -> None:
    skip_without_its_library(tool)
    data = make_inputs(tool, tmp_path / "data")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(FORKSERVER)
    served = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    artefact = ARTEFACTS.get(tool, "results.json")
    for name, workers, env in (("one", "0", {}), ("two", "2", served)):
        process = start(command(tool, data, tmp_path / name, "--workers", workers, "--steps", "3"), env)
        _, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
    assert (tmp_path / "one" / artefact).read_bytes() == (tmp_path / "two" / artefact).read_bytes()


@pytest.mark.parametrize("tool", COMMANDS)
def test_python_m_finds_each_tool(tool: str) -> None:
    process = start([sys.executable, "-m", f"tools.{tool}", "--help"], {"PYTHONPATH": ""})
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert f"tools/{tool}.py" in stdout


def test_a_name_that_the_screen_cannot_show_is_no_error(tmp_path: Path) -> None:
    data = make_inputs("pretrain", tmp_path / "Bilder_größer")
    (data / "kaputt_ä.png").write_bytes(b"no image")
    words = command("pretrain", data, tmp_path / "läuft", "--steps", "1", "--workers", "0", "--max-bad-fraction", "0.5")
    process = start(words, {"PYTHONIOENCODING": "ascii"})
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "kaputt_\\xe4.png" in stderr
    assert "l\\xe4uft/encoder.safetensors" in stdout
