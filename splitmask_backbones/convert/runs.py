"""The encoder in a run folder of this project: finished, of a step, or the best; of any of its trainings."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import BEST_MODEL, CONFIG, ENCODER
from splitmask_backbones.vit import check_arguments

FINISHED = (
    "model.safetensors",
    "pytorch_model.bin",
    ENCODER,
    "detector.safetensors",
    "segmentor.safetensors",
    "classifier.safetensors",
)
FIRST = "encoder.patch_embed.proj.weight"
PREFERRED = ("average.", "model.teacher")
"""What an encoder's names start with where a checkpoint holds several: the one that the finished run ends with."""


def file_of(folder: Path, step: int | None, best: bool) -> Path:
    """Returns the weights of a folder: the finished ones, else the newest checkpoint.

    Args:
        folder: of a run, or of Hugging Face.
        step: takes the checkpoint of this many steps.
        best: takes the best evaluated weights (`eval_every=N` of the fine-tuning tools keeps them).

    Raises:
        ValueError: there are no such weights.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step_????????.safetensors"))
    if step is not None:
        for path in checkpoints:
            if _step_of(path) == step:
                return path
        kept = ", ".join(str(_step_of(path)) for path in checkpoints) or "none"
        raise UserError(f"{folder} holds no checkpoint of step {step}: there are {kept}")
    if best:
        if (folder / BEST_MODEL).is_file():
            return folder / BEST_MODEL
        raise UserError(f"{folder} keeps no best weights ({BEST_MODEL}): train with eval_every=N, or omit --best")
    for candidate in (*(folder / name for name in FINISHED), *reversed(checkpoints)):
        if candidate.is_file():
            return candidate
    shards = sorted(folder.glob("*.index.json"))
    if shards:
        raise UserError(
            f"{folder} holds weights in several files ({shards[0].name}), which are not read: save them as one with "
            "save_pretrained(max_shard_size='100GB')"
        )
    raise UserError(f"{folder} is a folder without {', '.join(FINISHED)} or checkpoints: name a file")


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def run_of(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    """Returns config.json of the run that a file of weights is of, or None; an encoder file stands for itself."""
    try:
        config = json.loads(metadata.get("config", "{}"))
        if isinstance(config, dict) and "command" in config:
            return config
        if not config and (path.parent.name == "checkpoints" or path.name == BEST_MODEL):
            folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if isinstance(config, dict) and "command" in config:
                return config
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    if "state" in metadata:
        raise UserError(f"{path} is a checkpoint, but its run's config.json cannot be read: keep both together")
    return None


def encoder_of(
    path: Path, run: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Returns the encoder's arguments, its state, and the names of what else the file holds.

    Raises:
        ValueError: the run's config.json does not tell the arguments, or there is no encoder.
    """
    prefixes = sorted(name.removesuffix(FIRST) + "encoder." for name in tensors if name.endswith(FIRST))
    prefixes.sort(key=lambda prefix: not prefix.startswith(PREFERRED))
    if not prefixes:
        raise UserError(f"{path} holds no encoder: name a run of tools/pretrain.py or of a fine-tuning tool")
    prefix = prefixes[0]
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        config = run["encoder"]
        check_arguments(config)
    except KeyError as error:
        raise UserError(f"config.json of {path} names no {error}: the encoder's arguments cannot be told") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.json of {path} does not hold an encoder's arguments ({error}): copy it again"
        ) from None
    return config, state, [name for name in tensors if not name.startswith(prefix)]
