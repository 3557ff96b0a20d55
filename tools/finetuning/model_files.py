"""The trained model of a run as a file, found again, and what identifies the weights that a run starts from."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.training.checkpoints import digest_of, newest_checkpoint
from splitmask_backbones.checkpoints import read_safetensors
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of, write_atomically
from splitmask_backbones.missing import check_weights
from splitmask_backbones.run_files import BEST_MODEL, CHECKPOINTS


def weights_digest(weights: Path | None) -> str:
    """Returns the sha256 (hex) of a weights file, "none" without one.

    Raises:
        ValueError: no such file.
    """
    if weights is None:
        return "none"
    check_weights(weights)
    return sha256_of(weights)


def save_model(path: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Writes the model's parameters; metadata are the run's config and, in it, a checksum."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # One entry alone: safetensors writes several in any order, and equal runs must give equal bytes.
    text = json.dumps({**config, "sha256": digest_of(tensors, "")}, sort_keys=True)
    write_atomically(path, save(tensors, metadata={"config": text}))


def _remedy(path: Path) -> str:
    return "omit --best" if path.name == BEST_MODEL else "remove it, and the run's newest checkpoint is taken"


def _read_model(path: Path) -> dict[str, Tensor]:
    try:
        tensors, metadata = read_safetensors(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): {_remedy(path)}") from None
    expected = digest_of(tensors, "")
    if json.loads(metadata.get("config", "{}")).get("sha256", expected) != expected:
        raise UserError(f"{path} is damaged (its checksum is wrong): {_remedy(path)}")
    return tensors


def find_weights(folder: Path, finished: str, best: bool = False) -> tuple[str, dict[str, Tensor]]:
    """Returns the name of a run's weights and the weights: the finished model, else the newest checkpoint.

    Where the run keeps an average of its weights, that is returned.

    Args:
        best: take the best evaluated weights instead.

    Raises:
        ValueError: there are none, or none is readable.
    """
    path = folder / (BEST_MODEL if best else finished)
    if best and not path.exists():
        raise UserError(f"{folder} holds no {BEST_MODEL}: train with eval_every=N, or omit --best")
    if path.exists():
        return path.name, _read_model(path)
    found = newest_checkpoint(folder / CHECKPOINTS)
    if found is None:
        raise UserError(f"{folder} holds no trained weights yet: train first, or continue with --resume")
    state, tensors = found
    prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return f"checkpoint step_{state['step']:08d}", weights


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str, folder: Path, remedy: str) -> None:
    """Puts weights into the model.

    Args:
        tensors: from `find_weights`.
        remedy: what a user can do where they do not fit.

    Raises:
        ValueError: they belong to another model.
    """
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{source} of {folder} does not fit the recipe ({reason}): {remedy}") from None
