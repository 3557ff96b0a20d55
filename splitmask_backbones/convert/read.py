"""Reads any weights file without running anything that is in it."""

import argparse
import contextlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from splitmask_backbones.convert.runs import file_of, run_of
from splitmask_backbones.errors import UserError


@dataclass
class WeightsFile:
    """What a file holds.

    Attributes:
        path: the file that was read.
        tensors: by the names in the file, in float32 where they are floats.
        metadata: of a safetensors file.
        hf_config: config.json beside the file, as Hugging Face writes it.
        containers: keys around the tensors, such as ("teacher",) or ("model",).
        run: config.json of the run of this project that it belongs to.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    hf_config: dict[str, Any] | None = None
    containers: tuple[str, ...] = ()
    run: dict[str, Any] | None = None


def read_weights(path: str | Path, step: int | None = None, best: bool = False) -> WeightsFile:
    """Returns the tensors of a file, of a Hugging Face folder, or of a run folder.

    Args:
        path: `.safetensors`, anything that `torch.save` writes, or a folder.
        step: of a run folder's checkpoint; the finished or newest weights by default.
        best: the best evaluated weights of a run folder.

    Raises:
        ValueError: no such file, empty, damaged, of another format, or a pickle that would run code.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: check the path")
    if path.is_dir():
        path = file_of(path, step, best)
    elif step is not None or best:
        raise UserError(f"{path} is a file: {'--best' if best else '--step'} chooses in a run folder")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy it again")
    if path.suffix == ".safetensors":
        file = _read_safetensors(path)
    else:
        file = _read_torch(path)
    file.tensors = {name: value.float() if value.is_floating_point() else value for name, value in file.tensors.items()}
    file.run = run_of(path, file.metadata)
    config = path.parent / "config.json"
    if any("patch_embeddings" in name for name in file.tensors) and config.is_file():
        file.hf_config = json.loads(config.read_text(encoding="utf-8"))
    return file


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return WeightsFile(path, tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): copy it again") from None


def harmless_types() -> list[Any]:
    """Returns what checkpoints hold beside tensors and what runs nothing when it is read."""
    try:
        multiarray: Any = import_module("numpy._core.multiarray")
    except ImportError:  # NumPy 1
        multiarray = import_module("numpy.core.multiarray")
    types: list[Any] = [argparse.Namespace, multiarray.scalar, multiarray._reconstruct, np.dtype, np.ndarray]
    types += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    with contextlib.suppress(ImportError):
        from mmengine.logging.history_buffer import HistoryBuffer

        def statistic(owner: Any, name: str) -> Any:
            """What a HistoryBuffer's pickle calls getattr for, and nothing else."""
            if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
                raise pickle.UnpicklingError(f"Unsupported global: GLOBAL getattr({owner}, {name})")
            return getattr(owner, name)

        types += [HistoryBuffer, (statistic, "builtins.getattr")]
    return types


def _read_torch(path: Path) -> WeightsFile:
    try:
        with torch.serialization.safe_globals(harmless_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        refusal = re.search("unsupported global|weightsunpickler|weights_only", reason.lower())
        if refusal and isinstance(error, pickle.UnpicklingError):
            raise UserError(
                f"{path} holds Python objects that would run code when it is read ({_global_in(reason)}), so it was "
                "not: ask its author for a file with tensors alone"
            ) from None
        raise UserError(
            f"{path} is not a readable weights file ({reason[:150]}): it is damaged or of another format"
        ) from None
    tensors, containers = _find_tensors(content)
    if not tensors:
        raise UserError(f"{path} holds no tensors: name a file of weights")
    return WeightsFile(path, tensors, containers=containers)


def _global_in(reason: str) -> str:
    _, found, rest = reason.partition("GLOBAL ")
    return rest.split(" ")[0] if found else "a pickle of its own"


CONTAINERS = ("teacher", "model_ema", "state_dict_ema", "model", "state_dict", "module", "student")
"""Keys that weights lie under, the preferred one first: of DINO files the teacher is taken."""


def _find_tensors(content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if not isinstance(content, Mapping):
        return {}, ()
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            tensors, below = _find_tensors(content[key])
            if tensors:
                return tensors, (key, *below)
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, ()
