"""What launchers tell the processes that they start."""

from __future__ import annotations

import socket

import pytest

from pretrain.training.processes import TORCHRUN


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun_variables(rank: int = 0, world_size: int = 1, port: int = 29500) -> dict[str, str]:
    """Returns torchrun's variables of a process, all on one machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def clear_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what a launcher of the tests has set."""
    for name in (*TORCHRUN, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


def set_torchrun(monkeypatch: pytest.MonkeyPatch, rank: int = 0, world_size: int = 1) -> None:
    """Sets torchrun's variables for the test."""
    for name, value in torchrun_variables(rank, world_size).items():
        monkeypatch.setenv(name, value)
