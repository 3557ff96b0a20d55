"""Wall time of calls, also on a GPU, measured in turns because shared machines change their speed."""

import time
from collections.abc import Callable, Mapping

import torch


def timed(call: Callable[[], object], device: str) -> float:
    """Returns the seconds that `call()` takes, waiting for the device ("cpu" or "cuda") before and after."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], object]], num_rounds: int, device: str) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round, by name; a first round is made and not counted."""
    rounds = [{name: timed(call, device) for name, call in calls.items()} for _ in range(num_rounds + 1)]
    return {name: [seconds[name] for seconds in rounds[1:]] for name in calls}
