"""Every training tool killed with -9 at random moments, again and again: the results have the bytes of a quiet run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.small_runs import ARTEFACTS, TOOLS, command, make_inputs, skip_without_its_library, start

KILLS = int(os.environ.get("SPLITMASK_KILLS", "30"))
"""Moments for each tool."""
STEPS = {"probe": "200"}
NOT_RESULTS = {"config.json", "metrics.jsonl"}
"""Of the files that are compared: they hold speeds, and settings of the last start."""


def results(run: Path) -> dict[str, bytes]:
    """Returns the bytes of all files that a run is made for."""
    files = (path for path in run.iterdir() if path.is_file() and path.suffix in (".json", ".jsonl", ".safetensors"))
    return {path.name: path.read_bytes() for path in files if path.name not in NOT_RESULTS}


def is_killed_within(words: list[str], seconds: float) -> bool:
    """Runs for so many seconds; returns whether that was too short for the run to end by itself."""
    process = start(words)
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()  # until the workers, which hold the pipes, have gone as well
        return True
    assert process.returncode == 0, stderr
    return False


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_bytes_are_those_of_a_run_that_nobody_killed(tool: str, tmp_path: Path) -> None:
    skip_without_its_library(tool)
    data = make_inputs(tool, tmp_path / "data")
    options = ["--steps", STEPS.get(tool, "12"), "--workers", "2"]
    started = time.monotonic()
    assert not is_killed_within(command(tool, data, tmp_path / "whole", *options), 300)
    seconds = time.monotonic() - started
    whole = results(tmp_path / "whole")
    assert ARTEFACTS.get(tool, "results.json") in whole
    moments, kills, runs = random.Random(tool), 0, 0
    while kills < KILLS:
        run, runs = tmp_path / f"run{runs}", runs + 1

        def words(run: Path = run) -> list[str]:
            return command(tool, data, run, *options, *(["--resume"] if (run / "config.json").exists() else []))

        for _ in range(min(6, KILLS - kills)):  # then it may end: the next run meets the other moments
            if not is_killed_within(words(), moments.uniform(0.25, 0.95) * seconds):
                break
            kills += 1
        assert not is_killed_within(words(), 300)
        assert results(run) == whole, f"after {kills} kills"
    print(f"{tool}: {kills} kills, {runs} runs")
