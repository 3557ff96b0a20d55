"""Evaluations during a training: evaluations.jsonl, and the best model so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pretrain.run_folder import strict_json, write_json
from splitmask_backbones.files import write_atomically
from tools.model_files import save_model

EVALUATIONS = "evaluations.jsonl"
BEST_MODEL = "best.safetensors"
BEST_RESULTS = "best.json"


def record_evaluation(
    folder: Path,
    step: int,
    results: dict[str, Any],
    model: nn.Module,
    config: dict[str, Any],
    score: Callable[[dict[str, Any]], float],
) -> bool:
    """Adds a line to evaluations.jsonl; returns whether the model is the best so far, and then keeps it.

    Lines from `step` on are of updates that a resume has taken back: they are replaced. Of equally good models the
    earlier one stays.

    Args:
        folder: of the run.
        step: finished updates.
        results: as in results.json.
        model: with the weights that were evaluated.
        config: put into the metadata of best.safetensors.
        score: what results are compared by; larger is better.
    """
    path = folder / EVALUATIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["step"] < step]
    entry = {"step": step, **strict_json(results)}
    is_best = all(score(other) < score(entry) for other in entries)
    if is_best:
        save_model(folder / BEST_MODEL, model, config)
        write_json(folder / BEST_RESULTS, entry)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*entries, entry])
    write_atomically(path, text.encode())
    return is_best
