"""What tools/benchmark.py measures, one file a benchmark, and the wall time of calls, also on a GPU."""

import time
from collections.abc import Callable, Mapping

import torch


def in_turns(calls: Mapping[str, Callable[[], object]], num_rounds: int, device: str) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round, by name; a first round is made and not counted.

    In turns because shared machines change their speed; waits for the device ("cpu" or "cuda") before and after.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(num_rounds + 1):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: found[1:] for name, found in seconds.items()}
