"""Which of how many processes this is: torchrun's variables decide, else there is one. Free of torch.

No other module reads these variables. Empty ones count as unset.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from splitmask_backbones.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets, all of it, for each process that it starts."""

_OF_ONE = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
_COUNTED = (
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
)
"""Launchers that are not supported: the variables for the number of tasks and for the place among them."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: from 0, over all machines; 0 is the main process.
        world_size: processes of the run.
        local_rank: from 0, on this machine.
        local_world_size: processes on this machine.
        address: host where the processes meet; empty for a single process.
        port: of that host; 0 for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = ""
    port: int = 0

    @property
    def others(self) -> str:
        """The processes beside this one, in words."""
        ranks = [str(rank) for rank in range(self.world_size) if rank != self.rank]
        listed = ", ".join(ranks if len(ranks) < 5 else [*ranks[:3], "...", ranks[-1]])
        return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def processes() -> Processes:
    """Returns what torchrun's variables say; one process where they are not set, whatever else a cluster has set.

    Raises:
        ValueError: a part of the variables asks for several processes and the rest is missing, a value is impossible,
            or another launcher (srun, mpirun) has started several tasks, each of which would train by itself.
    """
    given = {name: os.environ[name].strip() for name in TORCHRUN if os.environ.get(name, "").strip()}
    numbers = {name: _number(name, text) for name, text in given.items() if name != "MASTER_ADDR"}
    missing = [name for name in TORCHRUN if name not in given]
    if missing:
        asking = [f"{name}={numbers[name]}" for name, one in _OF_ONE.items() if numbers.get(name, one) != one]
        if asking:
            names = ", ".join(entry.split("=")[0] for entry in asking)
            raise UserError(
                f"{', '.join(asking)} asks for several processes, but {', '.join(missing)} "
                f"{'are' if len(missing) > 1 else 'is'} not set: start the tool with torchrun, which sets all of them, "
                f"or unset {names}"
            )
        _refuse_tasks()
        return Processes()
    found = Processes(
        numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"],
        given["MASTER_ADDR"], numbers["MASTER_PORT"],
    )  # fmt: skip
    fits = found.rank < found.world_size and found.local_rank < found.local_world_size <= found.world_size
    if not fits or found.world_size % found.local_world_size:
        shown = ", ".join(f"{name}={numbers[name]}" for name in _OF_ONE)
        raise UserError(f"{shown} do not fit each other: start the tool with torchrun, or unset them")
    return found


def drop_empty_variables() -> None:
    """Takes empty variables out of the environment: libraries make numbers of them as soon as they are imported."""
    for name in (*TORCHRUN, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK"):
        if not os.environ.get(name, "-").strip():
            del os.environ[name]


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}={text} is not a whole number: start the tool with torchrun, or unset {name}")
    return int(text)


def _refuse_tasks() -> None:
    counted = [(launcher, _count(size), _count(place)) for launcher, size, place in _COUNTED]
    if _count("SLURM_PROCID"):  # not the first: there are others, whoever counts them
        counted.append(("srun", _count("SLURM_NTASKS"), _count("SLURM_PROCID")))
    for launcher, size, place in counted:
        if size > 1:
            raise UserError(
                f"{launcher} has started {size} tasks, of which this is number {place + 1}, and each would train by "
                f"itself: start one task a machine and torchrun in it ({launcher} ... torchrun "
                "--nproc-per-node=GPUS --nnodes=MACHINES ...), or one task alone"
            )


def _count(name: str) -> int:
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else 0
