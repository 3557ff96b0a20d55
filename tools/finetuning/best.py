"""Evaluations during a training: evaluations.jsonl, and the best model so far by the `score` of its task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.training.metrics import read_json_lines
from pretrain.training.run_folder import strict_json, write_json
from splitmask_backbones.files import write_atomically

EVALUATIONS = "evaluations.jsonl"
BEST_RESULTS = "best.json"


def is_recorded(folder: Path, step: int) -> bool:
    """Returns whether evaluations.jsonl has a line of this step."""
    return any(entry["step"] == step for entry in read_json_lines(folder / EVALUATIONS))


def record_evaluation(
    folder: Path, step: int, results: dict[str, Any], keep: Callable[[], None], score: Callable[[dict[str, Any]], float]
) -> bool:
    """Adds a line to evaluations.jsonl; returns whether the model is the best so far, and then keeps it.

    Lines from `step` on are of steps that a resume has taken back: they are replaced. Of equally good models the
    earlier one stays.

    Args:
        step: finished steps.
        keep: writes the model that was evaluated; called if it is the best.
        score: what lines are compared by; larger is better.
    """
    entries = [entry for entry in read_json_lines(folder / EVALUATIONS) if entry["step"] < step]
    entry = {"step": step, **strict_json(results)}
    is_best = all(score(other) < score(entry) for other in entries)
    if is_best:
        keep()
        write_json(folder / BEST_RESULTS, entry)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*entries, entry])
    write_atomically(folder / EVALUATIONS, text.encode())
    return is_best
