"""Encoder files: safetensors whose metadata holds the constructor arguments. Loading is strict and runs nothing."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.load_report import LoadReport
from splitmask_backbones.missing import check_weights
from splitmask_backbones.position import resize_pos_embed
from splitmask_backbones.relative_bias import NUM_CLASS_ROWS, num_rows, resize_bias_table
from splitmask_backbones.vit import VisionTransformer, check_arguments

PYRAMID = "pyramid."
"""What the names of a pyramid's parameters start with in an encoder file."""

logger = logging.getLogger(__name__)


def save_encoder(
    encoder: VisionTransformer,
    path: str | Path,
    pyramid_state: dict[str, Tensor] | None = None,
    partial: str = "",
    lineage: Sequence[dict[str, str]] = (),
    pixel_stats: dict[str, Any] | None = None,
) -> None:
    """Writes the encoder's parameters and constructor arguments; an existing file is replaced at once or not at all.

    Args:
        encoder: any `VisionTransformer`, also in the wrapper of `torch.compile` or of data parallelism.
        path: a `.safetensors` file; the folder must exist.
        pyramid_state: parameters of a `SimpleFeaturePyramid` that go with it, for adapters to load.
        partial: what is missing in it; every later report warns with this sentence.
        lineage: the files that it was converted or trained from, the oldest first: name, sha256 and family of each.
        pixel_stats: "image_mean" and "image_std" that pixels in [0, 1] had in its training; None for ImageNet's.

    Raises:
        ValueError: the folder does not exist, or the encoder has other parameters than its constructor makes, so that
            `load_encoder` could not read the file.
    """
    encoder = _unwrapped(encoder)
    _check_own(encoder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    tensors |= {f"{PYRAMID}{name}": value.contiguous() for name, value in (pyramid_state or {}).items()}
    metadata = {"config": json.dumps(encoder.config, sort_keys=True), **({"partial": partial} if partial else {})}
    metadata |= {"lineage": json.dumps(list(lineage))} if lineage else {}
    metadata |= {"pixel_stats": json.dumps(pixel_stats, sort_keys=True)} if pixel_stats else {}
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}: make it first")
    write_atomically(path, _in_order(save(tensors, metadata=metadata)))


def _unwrapped(encoder: Any) -> VisionTransformer:
    """Returns the encoder itself: wrappers put their own name in front of each parameter's."""
    inner = encoder
    while isinstance(inner, torch.nn.Module) and not isinstance(inner, VisionTransformer):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
    if not isinstance(inner, VisionTransformer):
        raise UserError(f"a {type(encoder).__name__} is no VisionTransformer: name the encoder in it (model.encoder)")
    return inner


def _check_own(encoder: VisionTransformer) -> None:
    with torch.device("meta"):
        made = VisionTransformer(**encoder.config).state_dict()
    own = encoder.state_dict()
    wrong = [
        name for name in {**made, **own} if name not in own or name not in made or own[name].shape != made[name].shape
    ]
    if wrong:
        raise UserError(
            f"the encoder has other parameters than its constructor makes ({len(wrong)}; the first is {wrong[0]}): "
            "take off what was added to it, or save its state_dict()"
        )


def _in_order(content: bytes) -> bytes:
    """Returns a safetensors file with its metadata sorted: the library writes them in any order, equal ones too."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


@dataclass
class EncoderFile:
    """What an encoder file holds.

    Attributes:
        config: every argument of `VisionTransformer`.
        tensors: the encoder's parameters.
        pyramid: those of a `SimpleFeaturePyramid`: of a converted ViTDet detector, else none.
        partial: what is missing in it, as a sentence; "" for nothing.
        lineage, pixel_stats: as of `save_encoder`.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    pyramid: dict[str, Tensor]
    partial: str
    lineage: list[dict[str, str]]
    pixel_stats: dict[str, Any] | None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file; raises what safetensors and torch raise."""
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)


def read_encoder_file(path: str | Path) -> EncoderFile:
    """Returns what an encoder file holds.

    Raises:
        ValueError: no such file, not a safetensors file, damaged, or without the `config` of `save_encoder`.
    """
    path = check_weights(path)
    try:
        tensors, metadata = read_safetensors(path)
    except MemoryError:
        raise
    except Exception as error:  # of a damaged header: SafetensorError, but torch's errors as well
        raise UserError(
            f"weights file {path} is not a readable safetensors file ({error}): it is damaged or of another format; "
            "copy it again, or turn other formats into ours with tools/convert.py"
        ) from None
    if "config" not in metadata:
        raise UserError(
            f"weights file {path} holds no encoder config, so it was not written by save_encoder: "
            "turn it into ours with tools/convert.py"
        )
    try:
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise TypeError(f"a JSON object is needed, not {type(config).__name__}")
        if "command" in config:  # written by a fine-tuning tool
            raise UserError(f"it is a whole model of {config['command']}: name an encoder.safetensors")
        check_arguments(config)
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        if config.get("depth", len(blocks)) != len(blocks):  # before a model of that depth is built
            raise ValueError(f"depth {config['depth']}, but the file holds {len(blocks)} blocks")
        with torch.device("meta"):
            source = VisionTransformer(**config)
    except MemoryError:
        raise
    except Exception as error:  # any value may stand in it
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"weights file {path} holds an unusable encoder config ({reason})") from None
    pyramid = {key.removeprefix(PYRAMID): tensors.pop(key) for key in list(tensors) if key.startswith(PYRAMID)}
    lineage, stats = _told(metadata, "lineage"), _told(metadata, "pixel_stats")
    return EncoderFile(
        source.config,
        tensors,
        pyramid,
        metadata.get("partial", ""),
        [entry for entry in lineage if isinstance(entry, dict)] if isinstance(lineage, list) else [],
        stats if are_pixel_stats(stats) else None,
    )


def _told(metadata: dict[str, str], name: str) -> Any:
    """Returns what a file says beside its weights; None where that cannot be read: no weight depends on it."""
    try:
        return json.loads(metadata.get(name, "null"))
    except ValueError:
        return None


def are_pixel_stats(found: Any) -> bool:
    """Returns whether it is mean and deviation of three channels, as of `save_encoder`."""
    if not isinstance(found, dict) or set(found) != {"image_mean", "image_std"}:
        return False
    return all(
        isinstance(v, list) and len(v) == 3 and all(isinstance(x, int | float) for x in v) for v in found.values()
    )


def load_encoder(path: str | Path, **overrides: Any) -> VisionTransformer:
    """Returns the encoder of a file written by `save_encoder`, every parameter accounted for.

    The report (`encoder.load_report`, also logged) names what was not simply loaded. Overrides may change what the
    weights allow: another `img_size` resizes learned positions, `positions="sincos"`, "fourier" or "none" replaces them
    (the paper's detection protocol is "sincos"), `use_class_token=False` and `num_registers=0` drop the tokens,
    `final_norm=False` drops the norm, `use_rel_pos=True` adds tables that start at zero.

    Args:
        path: the file.
        **overrides: keyword arguments of `VisionTransformer` that win over the file's.

    Raises:
        ValueError: unreadable or foreign file, unknown override, or an override that contradicts the weights.
    """
    check_arguments(overrides)
    file = read_encoder_file(path)
    report = LoadReport(str(Path(path).expanduser()), partial=file.partial)
    encoder = _rebuilt(file.config, file.tensors, overrides, report, f"weights file {path}")
    encoder.pyramid_state = file.pyramid
    logger.info("%s", report.summary())
    if report.warning:
        logger.warning("%s", report.warning)
    return encoder


def with_overrides(encoder: VisionTransformer, **overrides: Any) -> VisionTransformer:
    """Returns an encoder of other arguments on the same parameters: shared, not copied; `encoder` stays as it is.

    Args:
        encoder: in any state.
        **overrides: as of `load_encoder`.

    Raises:
        ValueError: unknown override, or one that contradicts the parameters.
    """
    check_arguments(overrides)
    state = encoder.state_dict(keep_vars=True)
    live = {"out_indices": list(encoder.out_indices), "grad_checkpointing": encoder.grad_checkpointing}
    config, trained = encoder.config | live, {name: tensor.requires_grad for name, tensor in state.items()}
    try:
        made = _rebuilt(config, state, overrides, LoadReport("a ready encoder"), "the ready encoder", shared=True)
    finally:
        for name, tensor in state.items():  # assigning them thaws those that are frozen
            tensor.requires_grad_(trained[name])
    weight = encoder.patch_embed.proj.weight
    for name, parameter in made.named_parameters():
        if parameter is not state.get(name):
            parameter.data = parameter.data.to(weight.device, weight.dtype)
            parameter.requires_grad_(trained.get(name, True))
    made.pyramid_state = encoder.pyramid_state
    made.load_report = made.load_report if encoder.load_report is None else encoder.load_report
    return made.train(encoder.training)


def _rebuilt(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    overrides: dict[str, Any],
    report: LoadReport,
    title: str,
    shared: bool = False,
) -> VisionTransformer:
    """Returns an encoder of `config` under `overrides` that holds the tensors, copied or themselves."""
    # Derived entries of the config must not outlive an override they were derived from.
    if "depth" in overrides and "out_indices" not in overrides:
        config = {key: value for key, value in config.items() if key != "out_indices"}
    with torch.device("meta"):
        source = VisionTransformer(**config)
    if source.use_rel_pos and config["rel_pos_grid"] is None and "img_size" in overrides:
        with torch.device("meta"):
            grid_size = VisionTransformer(**{**config, **overrides}).grid_size
        if grid_size != source.grid_size:  # the tables keep their grid
            config = {**config, "rel_pos_grid": list(source.grid_size)}
    if overrides.get("num_heads", config["num_heads"]) != config["num_heads"]:  # the one change no shape would show
        raise UserError(
            f"{title} does not fit an encoder with num_heads={overrides['num_heads']}: "
            f"it was trained with {config['num_heads']}"
        )
    encoder = VisionTransformer(**{**config, **overrides})
    state = _fit_to(encoder, source, tensors, report)
    try:
        encoder.load_state_dict(state, strict=True, assign=shared)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        changed = ", ".join(f"{key}={value!r}" for key, value in overrides.items()) or "its own config"
        raise UserError(f"{title} does not fit an encoder with {changed}: {reason}") from None
    encoder.load_report = report
    return encoder


def _fit_to(
    encoder: VisionTransformer, source: VisionTransformer, tensors: dict[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """Returns the state for `encoder`, with only the changes that overrides explain; each goes into the report."""
    state = dict(tensors)
    own = encoder.state_dict()
    for token in ("cls_token", "reg_token"):
        if token in state and token not in own:
            del state[token]
            report.dropped[token] = "the encoder was asked for without it"
    if "norm.weight" in state and "norm.weight" not in own:
        for key in ("norm.weight", "norm.bias"):
            state.pop(key, None)
            report.dropped[key] = "final_norm=False"
    if "pos_embed" in state:
        if encoder.pos_embed is None:
            del state["pos_embed"]
            report.dropped["pos_embed"] = f"learned positions replaced by positions='{encoder.positions}'"
        elif state["pos_embed"].shape == (1, source.num_prefix_tokens + math.prod(source.grid_size), source.embed_dim):
            state["pos_embed"] = _fit_positions(encoder, source, state["pos_embed"], report)
    for key in ("pos_proj.weight", "pos_proj.bias"):
        if key in state and key not in own:
            del state[key]
            report.dropped[key] = f"fourier positions replaced by positions='{encoder.positions}'"
        elif key in own and key not in state and source.pos_proj is None:
            state[key] = own[key]
            report.expected_missing[key] = "the projection of fourier positions starts at random"
    for key in [key for key in state if key.endswith("relative_position_bias_table") and key in own]:
        state[key] = _fit_bias_table(encoder, source, key, state[key], report)
    for key, value in own.items():
        if key.rsplit(".", 1)[-1] in ("rel_pos_h", "rel_pos_w") and key not in state and not source.use_rel_pos:
            state[key] = value
            report.expected_missing[key] = "relative positions start at zero"
    changed = {*report.resized, *report.dropped, *report.expected_missing}
    report.loaded = [key for key in state if key in own and key not in changed]
    return state


def _fit_positions(
    encoder: VisionTransformer, source: VisionTransformer, pos_embed: Tensor, report: LoadReport
) -> Tensor:
    """Returns the position table without the rows of dropped tokens and at the grid of the encoder's img_size."""
    rows: list[Tensor] = []
    for kept, start, count in (
        (encoder.cls_token is not None, 0, int(source.cls_token is not None)),
        (encoder.reg_token is not None, int(source.cls_token is not None), source.config["num_registers"]),
    ):
        if kept:
            rows.append(pos_embed[:, start : start + count])
    table = torch.cat([*rows, pos_embed[:, source.num_prefix_tokens :]], dim=1)
    num_prefix_tokens = sum(part.shape[1] for part in rows)
    if num_prefix_tokens == source.num_prefix_tokens and encoder.grid_size == source.grid_size:
        return pos_embed  # itself, where parameters are shared
    if encoder.grid_size != source.grid_size:
        report.resized["pos_embed"] = f"grid {source.grid_size} to {encoder.grid_size}, {encoder.position_resize}"
    return resize_pos_embed(table, source.grid_size, encoder.grid_size, num_prefix_tokens, encoder.position_resize)


def _fit_bias_table(
    encoder: VisionTransformer, source: VisionTransformer, key: str, table: Tensor, report: LoadReport
) -> Tensor:
    """Returns BEiT's table without the rows of a dropped class token and at the grid of the encoder's img_size."""
    with_class_token = source.cls_token is not None
    if table.shape[0] != num_rows(source.grid_size, with_class_token):
        return table  # of another model: the strict load says so
    if with_class_token and encoder.cls_token is None:
        table, with_class_token = table[:-NUM_CLASS_ROWS], False
        report.resized[key] = "without the rows of the class token"
    if encoder.grid_size != source.grid_size:
        report.resized[key] = f"grid {source.grid_size} to {encoder.grid_size}, spline over geometric offsets"
    return resize_bias_table(table, source.grid_size, encoder.grid_size, with_class_token)
