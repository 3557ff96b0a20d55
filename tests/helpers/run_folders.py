"""Hand-made folders of finished runs, as the tools leave them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from pretrain.recipes import RECIPES
from splitmask_backbones.registry import ENCODERS
from tools.detection.config import OPTIONS, load_config


def write_pretraining(folder: Path, recipe: str, num_files: int, **values: Any) -> Path:
    """Writes a finished pre-training and returns its encoder file; the file's content tells runs apart."""
    folder.mkdir(parents=True)
    recipe_values = dataclasses.asdict(RECIPES[recipe][1].override(values))
    config = {
        "command": "pretrain",
        "recipe": recipe,
        "values": recipe_values,
        "data": {"num_files": num_files, "fingerprint": "f" * 64, "unreadable": []},
        "free": {},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": s, "images": 1000 * s, "images_per_second": 0.5 * s} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "encoder.safetensors").write_bytes(f"encoder of {folder}".encode())
    return folder / "encoder.safetensors"


def write_detection(
    folder: Path, config: str, results: Any, weights: Path | None = None, images: int = 118_287, **values: Any
) -> Path:
    """Writes a finished detector; `results`: AP, AP50, AP75 of boxes, then of masks, or the text of results.json."""
    folder.mkdir(parents=True)
    recipe = load_config(f"det_configs/{config}.py").override(values)
    given = dataclasses.asdict(recipe)
    digest = "none" if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()
    content = {
        "command": "train_det",
        "config": config,
        "--engine": "detectron2",
        "--weights": digest,
        "values": {name: given[name] for name in OPTIONS},
        "recipe_values": {name: value for name, value in given.items() if name not in OPTIONS},
        "config_values": given,
        "encoder": ENCODERS[recipe.encoder],
        "data": {"train": "a", "val": "b"},
        "free": {"weights": None if weights is None else "moved/away.safetensors"},
    }
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "data_report.json").write_text(json.dumps({"train": {"images_used": images}}))
    if not isinstance(results, str):
        names = ("AP", "AP50", "AP75")
        kinds = {"bbox": results[:3], "segm": results[3:]}
        results = json.dumps({kind: dict(zip(names, numbers, strict=True)) for kind, numbers in kinds.items()})
    (folder / "results.json").write_text(results)
    return folder
