"""Evaluations during a training: evaluations.jsonl, and the segmentor with the best mIoU so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from pretrain.run_folder import strict_json, write_json
from splitmask_backbones.files import write_atomically
from tools.segmentation.checkpoints import save_weights

EVALUATIONS = "evaluations.jsonl"
BEST_WEIGHTS = "best.pth"
BEST_RESULTS = "best.json"


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / EVALUATIONS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def is_recorded(folder: Path, step: int) -> bool:
    """Returns whether evaluations.jsonl has a line of this step."""
    return any(entry["step"] == step for entry in _entries(folder))


def record_evaluation(folder: Path, step: int, results: dict[str, Any], model: nn.Module) -> bool:
    """Adds a line to evaluations.jsonl; returns whether the mIoU is the best so far, and then keeps the segmentor.

    Lines from `step` on are of updates that a resume has taken back: they are replaced. Of equally good segmentors the
    earlier one stays.

    Args:
        folder: of the run.
        step: finished updates.
        results: as in results.json.
        model: with the weights that were evaluated.
    """
    entries = [entry for entry in _entries(folder) if entry["step"] < step]
    entry = {"step": step, **strict_json(results)}
    is_best = all((other["mIoU"] or 0.0) < (entry["mIoU"] or 0.0) for other in entries)
    if is_best:
        save_weights(folder / BEST_WEIGHTS, model, {"step": step, "mIoU": entry["mIoU"]})
        write_json(folder / BEST_RESULTS, entry)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*entries, entry])
    write_atomically(folder / EVALUATIONS, text.encode())
    return is_best
