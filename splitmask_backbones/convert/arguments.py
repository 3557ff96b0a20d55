"""The arguments of an encoder from a file: what tensors show, what config.json tells, what the user has to say."""

import logging
import math
import re
from typing import Any

import torch
from torch import Tensor

from splitmask_backbones.convert import hf_config, timm_hub
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.convert.read import WeightsFile
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.registry import ENCODERS, encoder_name
from splitmask_backbones.relative_bias import num_rows
from splitmask_backbones.vit import cells

logger = logging.getLogger(__name__)


def arguments_of(
    file: WeightsFile, family: str, state: dict[str, Tensor], model: str | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of `VisionTransformer` that a file shows, its config.json tells, or the user gives.

    Args:
        file: of `read_weights`.
        family: one of FAMILIES but "splitmask".
        state: the encoder's tensors in our names.
        model: a name of `list_encoders()` that the file must fit.
        overrides: what the user gives.

    Raises:
        ValueError: something is not told, or two of these contradict each other.
    """
    _check_shapes(file, state)
    weight = state["patch_embed.proj.weight"]
    config: dict[str, Any] = {
        "patch_size": weight.shape[2],
        "in_chans": weight.shape[1],
        "embed_dim": weight.shape[0],
        "depth": max(_blocks(state)) + 1,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / weight.shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "use_class_token": "cls_token" in state and family != "vitdet",
        "num_registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "positions": "learned" if "pos_embed" in state else "none",
        # DINOv2 with registers resizes with antialiasing, DINO and DINOv2 without do not.
        "position_resize": "plain" if family in ("dino", "vitdet") and "reg_token" not in state else "antialias",
        "final_norm": "norm.weight" in state,
    }
    if model is not None:
        check_model(file, model, config)
    if "blocks.0.ls1.gamma" in state:
        config["layer_scale"] = 1e-5  # of a new encoder; this one's values are loaded
    config |= _told(file, family)
    _warn_without_positions(file, family, state, overrides)
    table = state.get("relative_position_bias_table", state.get("blocks.0.attn.relative_position_bias_table"))
    if table is not None:
        config["relative_position_bias"] = "shared" if "relative_position_bias_table" in state else "per_block"
    if "num_heads" not in config:
        config["num_heads"] = _heads(file, state, model, overrides, table)
    if "img_size" not in config:
        config["img_size"] = _img_size(file, family, state, config, overrides, table)
    elif "img_size" in overrides and _pair(overrides["img_size"]) != config["img_size"]:
        raise UserError(f"--set img_size contradicts config.json of {file.path}, which says {config['img_size']}")
    if file.hf_config is not None:
        hf_config.check_sizes(file.path, file.hf_config, config)
    if family == "vitdet":
        config |= _windows(file, state, overrides)
    return {**config, **overrides, "img_size": config["img_size"]}


def _told(file: WeightsFile, family: str) -> dict[str, Any]:
    """Returns what the config.json beside a file tells of the model and its tensors do not."""
    if family == "hf":
        if file.hf_config is None:
            raise UserError(
                f"{file.path} has Hugging Face's names but no config.json beside it, which tells heads, activation and "
                "epsilon: copy it from where the weights come from into the same folder"
            )
        need("transformers")
        hf_config.check_fields(file.path, file.hf_config)
        return hf_config.encoder_arguments(file.path, file.hf_config)
    if file.timm_config is None:
        return {}
    with torch.device("meta"):
        return timm_hub.hub_arguments(timm_hub.hub_model(file.path, file.timm_config))


def _check_shapes(file: WeightsFile, state: dict[str, Tensor]) -> None:
    """Refuses tensors that the arguments cannot be read from."""
    dimensions = {"patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "pos_embed": 3, "reg_token": 3}
    for name, count in dimensions.items():
        if name not in state and count == 3:
            continue
        if name not in state:
            raise UserError(f"{file.path} has no {name}, so its blocks are not those of a plain ViT: name another file")
        shape = tuple(state[name].shape)
        if len(shape) != count or 0 in shape:
            raise UserError(f"{file.path}: {name} has the shape {shape}, a plain ViT's has {count} dimensions")
        if count == 3 and (shape[0], shape[2]) != (1, state["patch_embed.proj.weight"].shape[0]):
            raise UserError(f"{file.path}: {name} has the shape {shape}, a plain ViT's is (1, tokens, width)")
    for name, value in state.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise UserError(
                f"{file.path}: {name} is no tensor of finite numbers: the file is damaged, or its training had diverged"
            )


def check_model(file: WeightsFile, model: str, config: dict[str, Any]) -> None:
    """Refuses a file that is not of the named encoder."""
    check_choice("model", model, ENCODERS, "--model")
    for key, expected in ENCODERS[model].items():
        if key != "num_heads" and config[key] != expected:
            name = encoder_name({"num_heads": config["embed_dim"] // 64, **config})
            remedy = f"give --model {name}" if name else "name the right one"
            raise UserError(f"{file.path} has {key} {config[key]}, but --model {model} has {expected}: {remedy}")


def _heads(
    file: WeightsFile, state: dict[str, Tensor], model: str | None, overrides: dict[str, Any], table: Tensor | None
) -> int:
    dim = state["patch_embed.proj.weight"].shape[0]
    if "num_heads" in overrides:
        return overrides["num_heads"]
    if table is not None:
        return table.shape[1]
    channels = state.get("blocks.0.attn.rel_pos_h")
    if channels is not None and channels.ndim == 2 and channels.shape[1] and dim % channels.shape[1] == 0:
        return dim // channels.shape[1]
    if model is not None:
        return ENCODERS[model]["num_heads"]
    if dim % 64:
        raise UserError(f"{file.path}: the heads of width {dim} cannot be told: give --model or --set num_heads=N")
    return dim // 64


def _img_size(
    file: WeightsFile,
    family: str,
    state: dict[str, Tensor],
    config: dict[str, Any],
    overrides: dict[str, Any],
    table: Tensor | None,
) -> list[int]:
    patch = config["patch_size"]
    class_token = int(config["use_class_token"] or family == "vitdet")
    if "img_size" in overrides:
        return _pair(overrides["img_size"])
    if "pos_embed" in state:
        rows = state["pos_embed"].shape[1]
        # Rows of prefix tokens: of all of them, of the class token alone (DINOv2), or of none (timm's no_embed_class).
        for count in (class_token + config["num_registers"], class_token, 0):
            side = math.isqrt(max(rows - count, 0))
            if side and side * side == rows - count:
                if count < class_token and not config["num_registers"]:
                    logger.warning(
                        "%s: its %d positions are taken for %d x %d patches, the class token having none (DeiT III); "
                        "if they are %d x %d patches and the class token, add --set img_size=%d,%d",
                        *(file.path, rows, side, side, side - 1, side + 1, (side - 1) * patch, (side + 1) * patch),
                    )
                return [side * patch, side * patch]
        raise UserError(
            f"{file.path}: {rows} positions are not a square grid, so its height and width cannot be told: "
            "give --set img_size=HEIGHT,WIDTH in pixels"
        )
    if table is not None:
        for side in range(1, 129):
            if num_rows((side, side), config["use_class_token"]) == table.shape[0]:
                return [side * patch, side * patch]
        raise UserError(
            f"{file.path}: a table of {table.shape[0]} offsets is not a square grid's: give --set img_size=HEIGHT,WIDTH"
        )
    return [14 * patch, 14 * patch]


def _pair(size: Any) -> list[int]:
    try:
        height, width = (size, size) if isinstance(size, int) else size
        return [int(height), int(width)]
    except (TypeError, ValueError):
        raise UserError(f"--set img_size={size} is not a size: give one number or HEIGHT,WIDTH in pixels") from None


def _warn_without_positions(
    file: WeightsFile, family: str, state: dict[str, Tensor], overrides: dict[str, Any]
) -> None:
    """Warns where a file shows no positions: rotary ones leave nothing in it, and a model without any is rare."""
    shown = any(name == "pos_embed" or "relative_position_bias" in name or "rel_pos_" in name for name in state)
    if not shown and family != "hf" and file.timm_config is None and "positions" not in overrides:
        logger.warning(
            "%s shows no positions, so the model is taken to have none: rotary ones, which are not converted, leave "
            "none in a file; --set positions=none confirms it",
            file.path,
        )


def _windows(file: WeightsFile, state: dict[str, Tensor], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns ViTDet's windows, which only the sizes of its relative-position tables show."""
    tables = {int(m[1]): v for n, v in state.items() if (m := re.fullmatch(r"blocks\.(\d+)\.attn\.rel_pos_h", n))}
    wide = {int(m[1]): v for n, v in state.items() if (m := re.fullmatch(r"blocks\.(\d+)\.attn\.rel_pos_w", n))}
    found: dict[str, Any] = {}
    if tables:
        if tables.keys() != wide.keys() or len(tables) != len(_blocks(state)):
            raise UserError(
                f"{file.path} has relative positions in {len(tables.keys() & wide.keys())} of {len(_blocks(state))} "
                "blocks: all or none of them have any; it is not whole, or of another model"
            )
        largest = max(tables, key=lambda i: tables[i].shape[0] + wide[i].shape[0])
        sides = [(table[largest].shape[0] + 1) // 2 for table in (tables, wide)]
        found = {"use_rel_pos": True, "rel_pos_grid": sides}
        small = [i for i in tables if tables[i].shape[0] < 2 * sides[0] - 1]
        if small:
            return found | {"window_size": (tables[small[0]].shape[0] + 1) // 2, "window_block_indexes": small}
    if "window_size" not in overrides:
        raise UserError(
            f"{file.path} does not show which blocks have windows: give --set window_size=14 and "
            "--set window_block_indexes=0,1,3,4,6,7,9,10 as in its training, or --set window_size=0 for none"
        )
    return found


def _blocks(state: dict[str, Tensor]) -> set[int]:
    return {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}


def fit_prefix_positions(state: dict[str, Tensor], config: dict[str, Any], family: str) -> bool:
    """Gives prefix tokens without a position zeros; takes a row that ViTDet ignores away.

    Returns whether the class token had none, which the file alone does not show; DINOv2's registers never have one.
    """
    if "pos_embed" not in state:
        return False
    patch, (height, width) = config["patch_size"], config["img_size"]
    patches = cells(height, patch) * cells(width, patch)
    table = state["pos_embed"]
    given = table.shape[1] - patches
    wanted = int(config["use_class_token"]) + config["num_registers"]
    if given < 0:
        raise UserError(
            f"{table.shape[1]} positions are fewer than the {patches} patches of img_size {config['img_size']}"
        )
    if given > wanted:
        state["pos_embed"] = table[:, given - wanted :] if family == "vitdet" else table
    elif given < wanted:
        zeros = table.new_zeros(1, wanted - given, table.shape[2])
        state["pos_embed"] = torch.cat([table[:, :given], zeros, table[:, given:]], dim=1)
    return given < int(config["use_class_token"])
