"""Data workers by the cores that a process may use."""

import os

import faiss
import pytest

from pretrain.tokenizers import codebook
from pretrain.training import cores
from pretrain.training.cores import auto_workers, cpu_quota, threads_alone, usable_cores, workers_alone
from tests.helpers.launch import clear_torchrun, set_torchrun


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "350000 100000\n"}, 3.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "odd"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(files, expected, tmp_path, monkeypatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == expected
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert usable_cores() == (8 if expected is None else int(expected))


def test_the_affinity_of_a_job(monkeypatch) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda root: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("number", "local", "free", "expected"),
    [
        (16, 1, 1 << 34, 15),
        (16, 4, 1 << 34, 3),
        (2, 1, 1 << 34, 1),
        (1, 1, None, 1),
        (4, 8, None, 1),
        (128, 1, None, cores.MOST_WORKERS),
        (16, 1, 64 << 20, 2),  # a container
        (2, 1, 64 << 20, 1),
    ],
)
def test_one_core_of_each_process_is_left_to_it(number, local, free, expected, monkeypatch) -> None:
    clear_torchrun(monkeypatch)
    if local > 1:
        set_torchrun(monkeypatch, rank=1, world_size=local)
    monkeypatch.setattr(cores, "usable_cores", lambda: number)
    monkeypatch.setattr(cores, "free_shared_memory", lambda: free)
    assert auto_workers() == expected


def test_kmeans_has_all_cores_while_the_others_wait(monkeypatch) -> None:
    before = faiss.omp_get_max_threads()
    set_torchrun(monkeypatch, rank=0, world_size=2)
    monkeypatch.setattr(cores, "usable_cores", lambda: before + 2)
    with codebook._all_cores():
        assert faiss.omp_get_max_threads() == before + 2
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize(
    ("number", "local", "workers", "expected"),
    [(16, 1, 4, 4), (16, 8, 1, 8), (16, 8, 4, 15), (2, 2, 1, 1), (16, 8, 0, 0), (4, 2, 6, 6)],
)
def test_who_works_while_the_others_wait_has_their_workers(number, local, workers, expected, monkeypatch) -> None:
    clear_torchrun(monkeypatch)
    if local > 1:
        set_torchrun(monkeypatch, rank=0, world_size=local)
    monkeypatch.setattr(cores, "usable_cores", lambda: number)
    assert workers_alone(workers) == expected
    assert threads_alone(1) == (number if local > 1 else 1)
