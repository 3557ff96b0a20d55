"""Which of how many processes this is: torchrun's variables, all or none, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.training.distributed import make_fabric
from pretrain.training.processes import TORCHRUN, Processes, drop_empty_variables, processes
from pretrain.training.run_folder import RunFolder
from tests.helpers.in_process import run_tool
from tests.helpers.launch import clear_torchrun, set_torchrun, torchrun_variables
from tests.helpers.paths import ROOT
from tools import pretrain


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_torchrun(monkeypatch)


def test_torchruns_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() == Processes(0, 1, 0, 1, "", 0)
    set_torchrun(monkeypatch, rank=1, world_size=4)
    assert processes() == Processes(1, 4, 1, 4, "127.0.0.1", 29500)
    assert processes().others == "ranks 0, 2, 3"


@pytest.mark.parametrize(
    "variables",
    [
        dict.fromkeys(TORCHRUN, ""),
        {"WORLD_SIZE": " ", "SLURM_PROCID": ""},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node7", "MASTER_PORT": "1234"},  # left over from a shell
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # plain python in a batch script
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_one_process_whatever_else_is_set(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes()
    fabric = make_fabric(device="cpu")
    assert (fabric.world_size, fabric.global_rank, fabric.is_global_zero) == (1, 0, True)


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"RANK": "1"}, r"RANK=1 asks for several processes, but WORLD_SIZE, .*MASTER_PORT are not set.*unset RANK$"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 asks for .* but RANK, .* are not set: start the tool with torchrun"),
        ({**torchrun_variables(0, 2), "MASTER_PORT": ""}, r"but MASTER_PORT is not set"),
        ({"RANK": "first"}, r"RANK=first is not a whole number"),
        (torchrun_variables(2, 2), r"RANK=2, WORLD_SIZE=2, .* do not fit each other"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, r"srun has started 2 tasks, .* number 2, .*torchrun"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, r"srun has started 2 tasks, .* number 1"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, r"srun has started 8 tasks, .* number 4"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, r"mpirun has started 2 tasks"),
    ],
)
def test_what_does_not_add_up_is_an_error_of_every_reader(
    variables: dict[str, str], match: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for read in (processes, make_fabric, lambda: RunFolder.open(tmp_path / "run", resume=False, artefact="x")):
        with pytest.raises(ValueError, match=match):
            read()
    words = ("--recipe", "tiny", "--data", image_folder, "--output", tmp_path / "run")
    done = run_tool(pretrain.main, *words)
    assert done.returncode == 2 and re.search(rf"\Aerror: .*{match}", done.stderr.rstrip("\n")), done.stderr
    assert not (tmp_path / "run").exists()


def test_empty_variables_are_dropped_and_others_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    drop_empty_variables()
    assert "LOCAL_RANK" not in os.environ and os.environ["MASTER_ADDR"] == "node7"


def test_no_other_module_reads_the_variables() -> None:
    pattern = re.compile(r"""["'](RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)["']""")
    readers = [
        str(path.relative_to(ROOT))
        for folder in ("pretrain", "tools", "splitmask_backbones", "det_configs", "seg_configs")
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert readers == ["pretrain/training/processes.py"]


SCRIPT = """
import _path
from tools import cli
def main(argv):
    cli.start_log()
    from pretrain.training import distributed
    from pretrain.training.signals import StopSignals
    distributed._SAID_AFTER_SECONDS = 0.2
    with StopSignals():
        distributed.make_fabric(device="cpu")
cli.run(main)
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_wait_for_others_says_for_whom_and_can_be_ended(rank: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'tools'}", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env |= torchrun_variables(rank, 2, port=29543 + rank)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and "waits" not in line:
            line = process.stderr.readline()
        assert line.startswith(f"warning: rank {rank} of 2 waits for rank {1 - rank} at 127.0.0.1:{29543 + rank} ")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        assert time.monotonic() - started < 6
    finally:
        process.kill()
