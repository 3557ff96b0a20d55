"""Data workers: errors arrive as their own, workers end with the iterator and with the process, shortages are named."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pretrain.training import workers as module
from pretrain.training.workers import Batches
from splitmask_backbones.errors import UserError
from tests.helpers.paths import ROOT


class Numbers:
    """Tensors of the key's value; keys above 4 raise what they are told to."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0, shape: tuple[int, ...] = (3,)) -> None:
        self.error, self.seconds, self.shape = error, seconds, shape

    def __getitem__(self, key: int) -> torch.Tensor:
        if key > 4:
            time.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        return torch.full(self.shape, key)


class Stubborn(Exception):
    """Takes other arguments than it keeps, so that it cannot be pickled."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def children() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("Process")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keys", [[[0, 1], [2, 3], [4]], [0, 1, 2, 3, 4]], ids=["batches", "items"])
def test_batches_are_those_of_torchs_loader(workers: int, keys: list[Any]) -> None:
    dataset: Any = Numbers()
    torch.manual_seed(3)
    found, drawn = list(Batches(dataset, keys, workers)), torch.rand(1)
    torch.manual_seed(3)
    if isinstance(keys[0], list):
        expected = list(DataLoader(dataset, batch_sampler=keys, num_workers=workers))
    else:
        expected = list(DataLoader(dataset, sampler=keys, batch_size=None, num_workers=workers))
    assert torch.equal(drawn, torch.rand(1))  # as many draws from the generator that the result depends on
    assert len(found) == len(keys)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (UserError("a.png cannot be read"), UserError, "a.png cannot be read"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/a.png"), FileNotFoundError, "No such file: '/x/a.png'"),
        (KeyError("boxes"), KeyError, "'boxes'"),
        (Stubborn("a.png", "gone"), RuntimeError, "Stubborn: a.png: gone"),
        (OSError(errno.EMFILE, "Too many open files", "/x/a.png"), ValueError, "/x/a.png: too many open files"),
        (MemoryError(), ValueError, "out of memory.*--workers"),
    ],
)
def test_what_a_worker_raises_arrives_as_its_own_and_ends_the_workers(
    error: Exception, kind: type[Exception], sentence: str
) -> None:
    batches = Batches(Numbers(error), [[0], [1], [5], [2], [3]], 2)
    assert len(children()) == 2
    with pytest.raises(kind, match=sentence) as raised:
        list(batches)
    assert "Caught" not in str(raised.value) and "Traceback" not in str(raised.value)
    own: Any = raised.value if raised.value.__cause__ is None else raised.value.__cause__
    assert "in __getitem__" in own.__notes__[0]  # for --debug
    assert not children()
    assert next(batches, None) is None


class Unsendable:
    """Can be made by a worker, and not be handed over."""

    def __reduce__(self) -> Any:
        raise RuntimeError("unable to write to file </torch_12_34>: No space left on device (28)")


class Unsendables:
    def __getitem__(self, key: int) -> Unsendable:
        return Unsendable()


def collate_first(items: list[Any]) -> Any:
    return items[0]


def test_a_batch_that_cannot_be_handed_over_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLENTY", -1)  # nothing is measured ahead
    with pytest.raises(ValueError, match=r"shared memory, /dev/shm.*, is too small.*--shm-size.*--workers"):
        next(Batches(Unsendables(), [[0], [1]], 1, collate_fn=collate_first))


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["idle", "busy"])
def test_closing_ends_the_workers(seconds: float) -> None:
    batches = Batches(Numbers(seconds=seconds), [[0], [5], [6], [7], [8]], 2)
    next(batches)
    started = time.monotonic()
    batches.close()
    assert not children()
    assert time.monotonic() - started < module._PATIENCE_SECONDS + 2
    batches.close()


def test_a_killed_worker_is_said_to_be_killed() -> None:
    batches = Batches(Numbers(seconds=0.2), [[0], *([key] for key in range(5, 40))], 1)
    next(batches)
    os.kill(children()[0].pid, signal.SIGKILL)
    with pytest.raises((ValueError, RuntimeError), match="memory ran out|ended without a word|killed by signal"):
        list(batches)
    assert not children()


SCRIPT = """
import multiprocessing, sys, time, os
from pretrain.training.workers import Batches
class Slow:
    def __getitem__(self, key):
        time.sleep(0.01 if key < 3 else 100)
        return key
def main():
    if sys.argv[1] != "fork":
        multiprocessing.set_start_method(sys.argv[1])
    global batches
    batches = Batches(Slow(), [[key] for key in range(9)], 2)
    next(batches)
    print(*[worker.pid for worker in batches._iterator._workers], flush=True)
    if sys.argv[2] == "error":
        raise ValueError("the loop failed")  # the traceback holds what it holds
    time.sleep(100)
if __name__ == "__main__":
    main()
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("end", ["killed", "error"])
def test_workers_end_with_the_process_however_it_ends(method: str, end: str, tmp_path: Any) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py"), method, end]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2, process.stderr.read()
    if end == "killed":
        process.kill()
    assert process.wait(10) == (-9 if end == "killed" else 1)
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def test_small_shared_memory_holds_fewer_batches_or_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, keys = Numbers(shape=(1000, 125)), [[0, 1], [2, 3]]  # int64: 2 MB a batch
    cases = [(None, 4), (1 << 40, 4), (100_000_000, 4), (12_100_000, 2), (8_100_000, 1)]
    for free, expected in cases:
        monkeypatch.setattr(module, "free_shared_memory", lambda free=free: free)
        assert module._fitting(module._Assembled(dataset, torch.stack), keys, 2, 4) == expected
    monkeypatch.setattr(module, "free_shared_memory", lambda: 7_000_000)
    with pytest.raises(ValueError, match=r"/dev/shm .* has 7.0 MB free, and 2 data workers .* 2.0 MB .*--workers 0"):
        Batches(dataset, keys, 2)
    assert len(list(Batches(dataset, keys, 0))) == 2


class Growing:
    """Items of `key` MB."""

    def __getitem__(self, key: int) -> torch.Tensor:
        return torch.zeros(key * 250_000)


def test_the_largest_of_some_items_stands_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_shared_memory", lambda: 21_000_000)
    with pytest.raises(ValueError, match="hand over batches of 8.0 MB"):
        module._fitting(module._Assembled(Growing(), list), [[1, 4]], 2, 4)
    assert module._fitting(module._Assembled(Growing(), list), [[1, 1]], 2, 4) == 4


def test_too_few_open_files_name_the_limit_and_not_the_disk() -> None:
    code = (
        "import resource, torch\n"
        "from pretrain.training.workers import Batches\n"
        "class Many:\n"
        "    def __getitem__(self, key): return [torch.zeros(2) for _ in range(9)]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "try: kept = [*Batches(Many(), [[0]] * 50, 1, collate_fn=list)]\n"
        "except ValueError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 40
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "too many open files (limit 40): raise it with ulimit -n" in done.stdout, done.stdout + done.stderr
