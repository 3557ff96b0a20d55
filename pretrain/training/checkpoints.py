"""Checkpoints of a training run: one self-verifying safetensors file per step, whole or not there."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pretrain.training.distributed import ending_together, gather, is_distributed
from pretrain.training.ema import start_at
from pretrain.training.options import NUM_CHECKPOINTS
from pretrain.training.processes import processes
from splitmask_backbones.checkpoints import read_safetensors
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import replaced_at_once

logger = logging.getLogger(__name__)


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_????????.safetensors"))


def path_of(folder: Path, step: int) -> Path:
    """Returns where the checkpoint after so many steps lies."""
    return folder / f"step_{step:08d}.safetensors"


def digest_of(tensors: dict[str, Tensor], state: str) -> str:
    """Returns the SHA-256 (hex) of named tensors on the CPU and of a text."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None = None
) -> Path:
    """Writes `step_XXXXXXXX.safetensors` (beside, flushed, renamed) and removes all but the newest two.

    Args:
        folder: created if missing.
        step: finished steps.
        model: its state goes under "model.".
        optimizer: its per-parameter state goes under "optimizer.INDEX."; learning rates come from the schedule.
        average: the state of its module goes under "average.".
    """
    folder.mkdir(exist_ok=True)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.module.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    state = json.dumps({"step": step})
    path = path_of(folder, step)
    try:
        with replaced_at_once(path) as beside:
            save_file(tensors, str(beside), metadata={"state": state, "sha256": digest_of(tensors, state)})
    except SafetensorError as error:
        raise UserError(
            f"checkpoint {path} could not be written ({error}): free some room on the disk, then --resume"
        ) from None
    # Newer files are damaged ones that a resume went past: they neither count nor stay.
    files = checkpoint_files(folder)
    position = files.index(path)
    for old in [*files[: max(0, position + 1 - NUM_CHECKPOINTS)], *files[position + 1 :]]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the state (`step`) and the tensors of a checkpoint.

    Raises:
        ValueError: the file is truncated, foreign, or its checksum is wrong.
    """
    try:
        tensors, metadata = read_safetensors(path)
        if digest_of(tensors, metadata["state"]) != metadata["sha256"]:
            raise UserError(f"checkpoint {path} is damaged: its checksum is wrong")
        return json.loads(metadata["state"]), tensors
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from None


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Returns the newest checkpoint that is whole, or None where there is none; names each damaged one it skips.

    Raises:
        ValueError: there are checkpoints and all are damaged.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            return read_checkpoint(path)
        except UserError as error:
            logger.warning("%s%s", error, "; the one before it is used" if path != files[0] else "")
    if files:
        raise UserError(
            f"no checkpoint in {folder} can be read ({len(files)} damaged): restore one from a backup, "
            "or start anew in another --output"
        )
    return None


def shared_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Returns what `newest_checkpoint` finds in the main process, in all processes; to be called by all of them.

    Raises:
        ValueError: in all processes, where the main one finds all damaged or another cannot read the one it has found.
    """
    own = processes().rank if is_distributed() else 0
    found = ending_together(lambda: newest_checkpoint(folder) if own == 0 else None)
    step = gather([None if found is None else found[0]["step"]])[0]

    def read() -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if own == 0 or step is None:
            return found
        try:
            return read_checkpoint(path_of(folder, step))
        except UserError as error:
            raise UserError(
                f"rank {own} cannot read what rank 0 resumes from ({error}): --resume once all see the same files"
            ) from None

    return ending_together(read)


def restore_newest(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None
) -> int:
    """Returns the finished steps of the newest whole checkpoint after restoring it; 0 where there is none.

    Raises:
        ValueError: what `shared_checkpoint` raises, or it belongs to another model.
    """
    found = shared_checkpoint(folder)
    if found is None:
        return 0
    restore(*found, model, optimizer, average)
    return found[0]["step"]


def restore(
    state: dict[str, Any],
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None = None,
) -> None:
    """Puts a checkpoint into the model, the optimizer and the average, strictly; each stays on the device it is on.

    Raises:
        ValueError: the checkpoint belongs to another model.
    """
    _load(model, tensors, "model.")
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        _load(average.module, tensors, "average.")
        start_at(average, state["step"])


def _load(model: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    try:
        model.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise UserError(f"the checkpoint belongs to another model: {' '.join(str(error).split())[:300]}") from None
