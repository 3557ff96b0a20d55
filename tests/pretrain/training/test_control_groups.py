"""Limits of a group within others: a job of a queue has its own below the machine's."""

from pathlib import Path

import pytest
import torch

from pretrain.training import control_groups, cores
from pretrain.training.control_groups import group_folders
from tools.pretraining.machine import free_memory


def test_folders_from_ones_own_group_to_the_root(tmp_path: Path) -> None:
    told = tmp_path / "cgroup"
    told.write_text("12:cpu,cpuacct:/job/1\n4:memory:/other\n0::/system.slice/a.service\n")
    root = Path("/mount")
    assert group_folders(root, "", told) == [root / "system.slice/a.service", root / "system.slice", root]
    assert group_folders(root, "memory", told) == [root / "other", root]
    assert group_folders(root, "cpu", told) == [root / "job/1", root / "job", root]
    assert group_folders(root, "", tmp_path / "nothing") == [root]


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_holds(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "cgroup"
    told.write_text("0::/slurm/job\n" if version == 2 else "3:memory:/slurm/job\n2:cpu,cpuacct:/slurm/job\n")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", told)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    memory = tmp_path if version == 2 else tmp_path / "memory"
    for folder, limit in (("slurm/job", "max" if version == 2 else str(2**62)), ("slurm", "3000000"), (".", "9000000")):
        (memory / folder).mkdir(parents=True, exist_ok=True)
        (memory / folder / names[0]).write_text(limit)
        (memory / folder / names[1]).write_text("1000000")
    assert free_memory(torch.device("cpu"), tmp_path) == 2_000_000
    cpu = tmp_path if version == 2 else tmp_path / "cpu"
    for folder, quota in (("slurm/job", 150_000), ("slurm", 400_000)):
        (cpu / folder).mkdir(parents=True, exist_ok=True)
        if version == 2:
            (cpu / folder / "cpu.max").write_text(f"{quota} 100000")
        else:
            (cpu / folder / "cpu.cfs_quota_us").write_text(str(quota))
            (cpu / folder / "cpu.cfs_period_us").write_text("100000")
    assert cores.cpu_quota(tmp_path) == 1.5
