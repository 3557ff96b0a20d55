"""mmengine checkpoints that are whole or not there, with a checksum; read back with torch's protection on.

`checkpoints/step_XXXXXXXX.pth` holds `state_dict`, `optimizer`, `message_hub` and `meta`, as any mmengine checkpoint
(without histories, see `leave_histories_out`); its SHA-256 stands beside it.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of, write_atomically
from tools.finetuning.best import record_evaluation

NUM_KEPT = 2
BEST_WEIGHTS = "best.pth"


def leave_histories_out(checkpoint: dict[str, Any]) -> None:
    """Takes mmengine's histories of scalars out of a checkpoint, in place, before it is written.

    With them mmengine 0.10.7 cannot resume under torch >= 2.6: a `HistoryBuffer` pickles its methods through `getattr`,
    which torch's `weights_only` refuses, and allowing `getattr` would be the end of that protection. metrics.jsonl has
    these numbers; what is left are tensors, numbers and strings, which torch reads with no exception made.
    """
    hub = checkpoint["message_hub"]
    hub["resumed_keys"] = {key: value for key, value in hub["resumed_keys"].items() if key not in hub["log_scalars"]}
    hub["log_scalars"] = {}
    info = hub["runtime_info"]
    hub["runtime_info"] = {key: value.item() if isinstance(value, np.generic) else value for key, value in info.items()}


def checkpoint_files(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step_????????.pth"))


def step_of(path: Path) -> int:
    """Returns the number of finished updates that a checkpoint holds."""
    return int(path.stem.removeprefix("step_"))


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def save(runner: Any, folder: Path, step: int) -> Path:
    """Writes the runner's state after `step` updates (beside, flushed, renamed); keeps the newest two.

    Called from a hook after the update, where mmengine counts one update less.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:08d}.pth"
    beside = folder / f".{path.name}.tmp"
    try:
        runner.save_checkpoint(
            str(folder), beside.name, save_param_scheduler=False, meta={"epoch": 0, "iter": step}, by_epoch=False
        )
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        # First the checksum: a checkpoint without one counts as damaged.
        write_atomically(_checksum_file(path), (sha256_of(beside) + "\n").encode())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    # Newer files are damaged ones that a resume went past: they neither count nor stay.
    files = checkpoint_files(folder)
    position = files.index(path)
    for old in [*files[: max(0, position + 1 - NUM_KEPT)], *files[position + 1 :]]:
        old.unlink()
        _checksum_file(old).unlink(missing_ok=True)
    return path


def save_weights(path: Path, model: torch.nn.Module, meta: dict[str, Any]) -> None:
    """Writes `{"state_dict", "meta"}` and its checksum; an earlier file is replaced at once or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        torch.save({"state_dict": model.state_dict(), "meta": meta}, beside)
        checksum = sha256_of(beside) + "\n"
        _checksum_file(path).unlink(missing_ok=True)  # in between, neither the old nor the new file looks whole
        os.replace(beside, path)
        write_atomically(_checksum_file(path), checksum.encode())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def record_best(folder: Path, step: int, results: dict[str, Any], model: torch.nn.Module) -> bool:
    """Records an evaluation; returns whether its mIoU is the best so far, and then keeps the segmentor."""

    def keep(entry: dict[str, Any]) -> None:
        save_weights(folder / BEST_WEIGHTS, model, {"step": step, "mIoU": entry["mIoU"]})

    return record_evaluation(folder, step, results, keep, score=lambda entry: entry["mIoU"] or 0.0)


def verify(path: Path) -> None:
    """Raises ValueError unless the file is the one whose checksum was written."""
    try:
        expected = _checksum_file(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        raise UserError(f"checkpoint {path} is damaged: its checksum file is missing") from None
    if sha256_of(path) != expected:
        raise UserError(f"checkpoint {path} is damaged: its checksum is wrong")


def newest(folder: Path) -> Path | None:
    """Returns the newest checkpoint that is whole, or None where there is none; names each damaged one it skips.

    Raises:
        ValueError: there are checkpoints and all are damaged.
    """
    files = checkpoint_files(folder)
    for path in reversed(files):
        try:
            verify(path)
            return path
        except UserError as error:
            sys.stderr.write(f"warning: {error}; the one before it is used\n")
    if files:
        raise UserError(
            f"no checkpoint in {folder} can be read ({len(files)} damaged): restore one from a backup, "
            "or start anew in another --output"
        )
    return None


def check_fits(path: Path, model: torch.nn.Module, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Returns the `state_dict` of a checkpoint that has exactly the model's names and shapes (mmengine itself is lax).

    Raises:
        ValueError: the file cannot be read safely, or belongs to another model.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read safely ({' '.join(str(error).split())[:200]})") from error
    own = model.state_dict()
    different = [k for k in {**own, **state} if k not in own or k not in state or own[k].shape != state[k].shape]
    if different:
        raise UserError(
            f"checkpoint {path} belongs to another model ({len(different)} parameters differ, the first is "
            f"{different[0]}): use the config and the classes that it was trained with"
        )
    return state
