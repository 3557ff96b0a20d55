"""MODEL_CARD.md of a pre-training run: made from what the run has written, in the form of the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.training.metrics import read_json_lines
from pretrain.training.recipe import titled
from splitmask_backbones import __version__
from splitmask_backbones.convert.names import MODEL_CARD
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import CONFIG, METRICS_LOG, MONITOR_LOG, TOKENIZER

ROWS = 10
"""Steps of the curve, at most."""
COLUMNS = ("step", "loss", "loss_inpaint", "loss_match", "token_accuracy", "lr")

logger = logging.getLogger(__name__)


def write_model_card(folder: Path, lineage: Iterable[dict[str, str]]) -> None:
    """Writes the card of a run that is about to end; one that lies there is its user's, and stays.

    Args:
        folder: of the run, with config.json, metrics.jsonl and what else it has left.
        lineage: as of `save_encoder`.
    """
    path = folder / MODEL_CARD
    if path.exists():
        logger.info("%s is there already and stays as it is", path)
        return
    write_atomically(path, model_card(folder, list(lineage)).encode())


def model_card(folder: Path, lineage: list[dict[str, str]]) -> str:
    """Returns the card as Markdown under a YAML head that the hub accepts."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    values, data = config["values"], config["data"]
    title = titled(values["model"], values.get("embed_dim"), values.get("depth"))
    parts = [
        _head(values),
        f"# {title}, pre-trained with {values['method']}",
        "A plain Vision Transformer, pre-trained without labels by splitmask_backbones. Trained once, evaluated on "
        "nothing: say here what you have measured with it.",
        '```python\nfrom splitmask_backbones import load_encoder\n\nencoder = load_encoder("encoder.safetensors")\n```',
        "## Licence",
        "Fill in: the licence of the images decides. Replace `unknown` in the head of this file "
        "(https://huggingface.co/docs/hub/repositories-licenses lists the names).",
        "## Data",
        _table(
            {
                "images": data.get("num_files"),
                "of them unreadable": len(data.get("unreadable", [])),
                "share kept out of training": config.get("--holdout", 0),
                "name of the folder or list": _names(config["free"].get("data", "")),
                "fingerprint": data.get("fingerprint"),
            }
        ),
        "What they show, where they come from, whom they may show, and what is missing among them: fill in.",
        "## Recipe",
        f"`--recipe {config['recipe']}`; the values that were used:",
        _table(values),
        "## Lineage",
        _lineage(lineage),
        "## Curves",
        _curves(folder),
        "## Codebook",
        _codebook(folder),
        "## Versions",
        _table(_versions(config)),
        "## Citation",
        "The method is that of El-Nouby et al., Are Large-scale Datasets Necessary for Self-Supervised Pre-training?, "
        "arXiv:2112.10740.",
    ]
    return "\n\n".join(parts) + "\n"


def _names(data: str | list[str]) -> str:
    """Returns the names of folders or lists without their paths, which are nobody else's business."""
    return ", ".join(Path(place).name for place in ([data] if isinstance(data, str) else data))


def _head(values: dict[str, Any]) -> str:
    tags = ["vision-transformer", "self-supervised-learning", str(values["method"]), str(values["model"])]
    lines = [
        "---",
        "license: unknown  # fill in: apache-2.0, cc-by-4.0, other, ...",
        "library_name: splitmask_backbones",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _table(entries: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in entries.items()]
    return "\n".join(["| | |", "| :--- | :--- |", *rows])


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _lineage(lineage: list[dict[str, str]]) -> str:
    if not lineage:
        return "From random initialisation."
    steps = [f"1. {_cell(e['file'])} ({e['family']}), sha256 `{e['sha256']}`" for e in lineage]  # Markdown counts on
    return "Training began with these weights, the oldest first:\n\n" + "\n".join(steps)


def _curves(folder: Path) -> str:
    entries = read_json_lines(folder / METRICS_LOG)
    if not entries:
        return "No step was logged."
    places = sorted({round(i * (len(entries) - 1) / max(1, ROWS - 1)) for i in range(ROWS)})
    columns = [name for name in COLUMNS if any(entries[place].get(name) is not None for place in places)]
    rows = [f"| {' | '.join(columns)} |", f"| {' | '.join('---:' for _ in columns)} |"]
    rows += [f"| {' | '.join(_cell(entries[place].get(name)) for name in columns)} |" for place in places]
    looks = read_json_lines(folder / MONITOR_LOG)
    if looks:
        rows += ["", "The monitor's last look:", "", _table({k: v for k, v in looks[-1].items() if v is not None})]
    return "\n".join(rows)


def _codebook(folder: Path) -> str:
    path = folder / TOKENIZER
    if not path.exists():
        return "None: the method predicts no token ids."
    return _table(json.loads(path.read_text(encoding="utf-8")))


def _versions(config: dict[str, Any]) -> dict[str, Any]:
    free = config["free"]
    found = {"splitmask_backbones": __version__, "Python": platform.python_version(), "torch": free.get("torch")}
    for name in ("numpy", "pillow", "lightning-fabric"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "device": free.get("device"), "processes": free.get("processes"), "machine": free.get("machine")}
