"""Evaluations during a training: evaluations.jsonl, and the best detector so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from pretrain.run_folder import strict_json, write_json
from splitmask_backbones.files import write_atomically
from tools.detection.results import save_detector

EVALUATIONS = "evaluations.jsonl"
BEST_DETECTOR = "best.safetensors"
BEST_RESULTS = "best.json"


def best_by(entry: dict[str, Any]) -> float:
    """Returns what detectors are compared by: mask AP plus box AP, an undefined one as 0."""
    return sum(entry[kind]["AP"] or 0.0 for kind in ("bbox", "segm"))


def record_evaluation(
    folder: Path, step: int, results: dict[str, Any], detector: nn.Module, config: dict[str, Any]
) -> bool:
    """Adds a line to evaluations.jsonl; returns whether the detector is the best so far, and then keeps it.

    Lines from `step` on are of updates that a resume has taken back: they are replaced. Of equally good detectors the
    earlier one stays.

    Args:
        folder: of the run.
        step: finished updates.
        results: as in results.json.
        detector: with the weights that were evaluated.
        config: put into the metadata of best.safetensors.
    """
    path = folder / EVALUATIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["step"] < step]
    entry = {"step": step, **strict_json(results)}
    is_best = all(best_by(other) < best_by(entry) for other in entries)
    if is_best:
        save_detector(folder / BEST_DETECTOR, detector, config)
        write_json(folder / BEST_RESULTS, entry)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in [*entries, entry])
    write_atomically(path, text.encode())
    return is_best
