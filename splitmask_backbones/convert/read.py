"""Reads any weights file without running anything that is in it."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, strided

from splitmask_backbones.checkpoints import read_safetensors
from splitmask_backbones.convert.roles import PATCHES, find_tensors
from splitmask_backbones.convert.runs import file_of, run_of
from splitmask_backbones.convert.torch_files import load_torch
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import load_object
from splitmask_backbones.missing import check_path

logger = logging.getLogger(__name__)

FROM_SOURCE = "copy it again from where the weights come from"


@dataclass
class WeightsFile:
    """What a file holds.

    Attributes:
        path: the file that was read.
        tensors: by the names in the file, in float32 where they are floats.
        metadata: of a safetensors file.
        hf_config: config.json beside the file, as Hugging Face's transformers writes it.
        timm_config: config.json beside the file, as timm writes it: with the name of its architecture.
        processor: preprocessor_config.json beside the file.
        containers: keys around the tensors, such as ("teacher",) or ("model",).
        others: keys around other ViTs in the file, which were left.
        run: config.json of the run of this project that it belongs to.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    hf_config: dict[str, Any] | None = None
    timm_config: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    containers: tuple[str, ...] = ()
    others: list[tuple[str, ...]] = field(default_factory=list)
    run: dict[str, Any] | None = None


def read_weights(path: str | Path, step: int | None = None, best: bool = False) -> WeightsFile:
    """Returns the tensors of a file, of a Hugging Face folder, or of a run folder.

    Args:
        path: a safetensors file, anything that `torch.save` writes (told by content, not by suffix), or a folder.
        step: of a run folder's checkpoint; the finished or newest weights by default.
        best: the best evaluated weights of a run folder.

    Raises:
        ValueError: no such file, empty, damaged, of another format, or a pickle that would run code.
    """
    _check_no_address(str(path))
    path = check_path(path)
    if path.is_dir():
        path = file_of(path, step, best)
    elif step is not None or best:
        raise UserError(f"{path} is a file: {'--best' if best else '--step'} chooses in a run folder")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: name a file of weights")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): copy it again")
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        file = _read_safetensors(path)
    else:
        containers, tensors, others = find_tensors(load_torch(path))
        if not tensors:
            raise UserError(f"{path} holds no tensors: name a file of weights")
        file = WeightsFile(path, tensors, containers=containers, others=others)
    file.tensors = {name: _plain(path, name, value) for name, value in file.tensors.items()}
    file.run = run_of(path, file.metadata)
    _read_configs(file)
    return file


def _check_no_address(name: str) -> None:
    """Raises ValueError for the address of a file, and for what looks like a model of the Hugging Face hub."""
    if re.match(r"https?:/", name):
        raise UserError(f"{name} does not exist: download it first, files alone are read")
    if re.fullmatch(r"[\w-]+/[\w.-]+", name) and not Path(name).parent.exists():
        raise UserError(
            f"{name} does not exist: check the path; a model of the Hugging Face hub is downloaded first: "
            f"hf download {name} --local-dir DIR"
        )


def _plain(path: Path, name: str, value: Tensor) -> Tensor:
    """Returns a tensor, in float32 where it holds floats; refuses what is no plain array of numbers."""
    if value.layout != strided or value.is_quantized or value.is_meta:
        raise UserError(
            f"{path}: {name} is sparse, quantized or without values: save the weights as plain float tensors"
        )
    return value.float() if value.is_floating_point() else value


def _looks_like_safetensors(path: Path) -> bool:
    """Returns whether a file begins as safetensors do: the length of a JSON object and the object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        tensors, metadata = read_safetensors(path)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # of a damaged header: SafetensorError, but torch's errors as well
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is not a readable safetensors file ({reason}): copy it again") from None
    if not tensors:
        raise UserError(f"{path} holds no tensors: name a file of weights")
    return WeightsFile(path, tensors, metadata)


TIMM_FIELDS = {"pretrained_cfg", "num_features"}
"""What timm writes into every config.json, beside the architecture that others write as well."""


def _read_configs(file: WeightsFile) -> None:
    """Reads the description beside the weights of a folder that transformers or timm wrote."""
    path = file.path.parent / "config.json"
    if file.run is not None or "config" in file.metadata or not path.is_file():
        return
    if not any(name.endswith(PATCHES) for name in file.tensors):
        return
    if any(name.endswith(PATCHES[1]) for name in file.tensors):
        file.hf_config = load_object(path, FROM_SOURCE)
    else:
        try:
            config = load_object(path, FROM_SOURCE)
        except UserError as error:  # anybody's config.json may lie beside a .pth
            logger.warning("not looked at: %s", error)
            config = {}
        if "architecture" in config and TIMM_FIELDS & config.keys():
            file.timm_config = config
    processor = path.with_name("preprocessor_config.json")
    if processor.is_file():
        file.processor = load_object(processor, FROM_SOURCE)
