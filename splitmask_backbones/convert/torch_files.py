"""Reads what `torch.save` wrote without running anything that is in it, and says what a file is that is not that."""

import argparse
import contextlib
import os
import pickle
import re
import threading
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitmask_backbones._yapf_cache import import_yapf
from splitmask_backbones.errors import UserError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_OTHERS = {
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"BZh": "is compressed (bzip2): unpack it first",
    b"\xfd7zXZ": "is compressed (xz): unpack it first",
    b"\x89HDF": "is an HDF5 file, as Keras writes it: convert it to PyTorch with its authors' tool first",
    b"GGUF": "is a GGUF file of quantized weights: take the original's",
}
"""First bytes -> what the file is."""
_ONE_AT_A_TIME = threading.Lock()
"""The list of types that torch may load is one for the process."""
if hasattr(os, "register_at_fork"):  # a child forked while another thread reads must not wait for that thread
    os.register_at_fork(after_in_child=lambda: globals().update(_ONE_AT_A_TIME=threading.Lock()))


def load_torch(path: Path) -> Any:
    """Returns what `torch.save` wrote, on the CPU.

    Raises:
        ValueError: text, another format, a damaged file, or a pickle that would run code.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start.startswith((_ZIP, _PICKLE)):
        raise UserError(f"{path} {_what(start)}")
    if start.startswith(_ZIP):
        _check_archive(path)
    try:
        with _ONE_AT_A_TIME, torch.serialization.safe_globals(harmless_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged pickle makes the unpickler raise anything: IndexError, TypeError, ...
        plain = any(text in str(error) for text in ("Unsupported operand", "Invalid magic number"))
        if start.startswith(_PICKLE) and plain:  # of pickle.dump and not of torch.save
            return _load_pickle(path)
        raise UserError(f"{path} {_refusal(error)}") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists and NumPy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in _OF_ARRAYS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} was not an allowed global by default")
        try:
            return getattr(import_module(module), name)
        except ImportError:  # the other name of NumPy's core
            return getattr(import_module(module.replace("numpy._core", "numpy.core")), name)


_OF_ARRAYS = {("numpy.core.multiarray", name) for name in ("_reconstruct", "scalar")}
_OF_ARRAYS |= {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode")}
_OF_ARRAYS |= {("collections", "OrderedDict")}


def _load_pickle(path: Path) -> Any:
    """Returns what `pickle.dump` wrote, arrays as tensors: so are the detectors of detectron2's model zoo."""
    try:
        with open(path, "rb") as file:
            found = _ArrayUnpickler(file).load()
            if not isinstance(found, dict):
                raise pickle.UnpicklingError(f"a dictionary is needed, not {type(found).__name__}")
            return _with_tensors(found)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise UserError(f"{path} {_refusal(error)}") from None


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tensors(item) for name, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value


def _check_archive(path: Path) -> None:
    """Compares the checksums of a zip file, which `torch.load` does not: a flipped bit would be a wrong weight."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is damaged or cut off ({_brief(error)}): copy it again, and compare its size with the original's"
        ) from None
    if broken is not None:
        raise UserError(f"{path} is damaged (the checksum of {broken} is wrong): copy it again")
    if any(name.endswith(".npy") for name in names):
        raise UserError(
            f"{path} is a NumPy archive, as Google publishes ViTs: load it with timm (checkpoint_path), and torch.save "
            "the model's state_dict()"
        )
    if not any(name.endswith("data.pkl") for name in names):
        first = names[0] if names else "nothing"
        raise UserError(f"{path} is a zip archive of other files ({first}): unpack it, and name the weights in it")
    if any(name.endswith("constants.pkl") for name in names):
        raise UserError(
            f"{path} is a TorchScript program and no file of tensors: load it with torch.jit.load where you trust it, "
            "and torch.save its state_dict()"
        )


def _what(start: bytes) -> str:
    """Returns what a file is that torch has not written, from its first bytes, as the rest of a sentence."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the file itself: run git lfs pull"
    for magic, said in _OTHERS.items():
        if start.startswith(magic):
            return said
    head = start.lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, probably of a failed download: download the file itself"
    shown = start[:24].decode("ascii", "replace").replace("\ufffd", "?")
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return f"is text ({_brief(repr(shown))}) and holds no weights: name a file of weights"
    return (
        f"is not a readable weights file (it begins with the bytes {start[:4].hex(' ')}): it is damaged or of another "
        "format; .safetensors and what torch.save writes are read"
    )


def _refusal(error: Exception) -> str:
    reason = " ".join(str(error).split())
    found = re.search(r"GLOBAL (\S+) was not an allowed global|[Uu]nsupported global: GLOBAL (\S+)", reason)
    if found and isinstance(error, pickle.UnpicklingError):
        return (
            f"holds Python objects that would run code when it is read ({found[1] or found[2]}), so it was not: "
            "ask its author for a file with tensors alone"
        )
    _, _, after = reason.partition("WeightsUnpickler error: ")  # torch's own advice is to trust the file
    return (
        f"is not a readable weights file ({_brief(after or error)}): it is damaged or of another format; copy it again"
    )


def _brief(error: object) -> str:
    text = " ".join(str(error).split())[:150]
    return f"{type(error).__name__}: {text}" if isinstance(error, Exception) else text


def harmless_types() -> list[Any]:
    """Returns what checkpoints hold beside tensors and what runs nothing when it is read."""
    try:
        multiarray: Any = import_module("numpy._core.multiarray")
    except ImportError:  # NumPy 1
        multiarray = import_module("numpy.core.multiarray")
    types: list[Any] = [argparse.Namespace, multiarray.scalar, multiarray._reconstruct, np.dtype, np.ndarray]
    types += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    with contextlib.suppress(ImportError):
        import_yapf()
        from mmengine.logging.history_buffer import HistoryBuffer

        def statistic(owner: Any, name: str) -> Any:
            """What a HistoryBuffer's pickle calls getattr for, and nothing else."""
            if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
                raise pickle.UnpicklingError(f"Unsupported global: GLOBAL getattr({owner}, {name})")
            return getattr(owner, name)

        types += [HistoryBuffer, (statistic, "builtins.getattr")]
    return types
