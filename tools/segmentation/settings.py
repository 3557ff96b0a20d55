"""What a run is made with: the config file, the words and options given, and what an earlier run recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError
from tools.segmentation.config import check_config, gives_lr, load_config, override, scale_lr


def read_record(output: Path) -> dict[str, Any]:
    """Returns config.json of the run in `output`; empty where there is none yet (then RunFolder decides).

    Raises:
        ValueError: it is damaged, or of another tool.
    """
    path = output / "config.json"
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["tool"] == "train_seg":
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} was not written by tools/train_seg.py, or is damaged: choose another --output")


def run_config(path: Path, args: argparse.Namespace, record: dict[str, Any], use_recorded: bool) -> dict[str, Any]:
    """Returns the config with the words and options given.

    Options left away keep the values of the run in `record`. With `use_recorded` (evaluating, predicting) so does
    everything else; a resume reads the file again, so that a config that has changed is told apart.
    """
    config = load_config(path)
    values = record.get("values", {})
    if use_recorded:
        config |= {key: _tuples(value) for key, value in record["config"].items()}
    if values:
        config |= {name: values[name] for name in ("steps", "batch_size", "img_size", "seed")}
        config["optim_wrapper"]["optimizer"]["lr"] = values["lr"]
        config["use_tta"] = values.get("tta", False)
    batch_size = config["batch_size"]
    override(config, args.overrides)
    for name in ("steps", "batch_size", "img_size", "seed", "save_every", "log_every"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)
    if args.lr is not None:
        config["optim_wrapper"]["optimizer"]["lr"] = args.lr
    elif not gives_lr(args.overrides) and isinstance(config["batch_size"], int):
        scale_lr(config, batch_size)
    config["use_tta"] = config["use_tta"] or args.tta
    args.precision = args.precision or values.get("precision", "32")
    check_config(config)
    return config


def _tuples(value: Any) -> Any:
    """Returns JSON lists of numbers as the tuples that mmcv's transforms insist on."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_tuples(item) for item in value]
        return tuple(items) if items and all(isinstance(item, int | float) for item in items) else items
    return value
