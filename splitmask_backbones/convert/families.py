"""Which family a weights file is of, and the encoder that it describes."""

import logging
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from splitmask_backbones.checkpoints import read_encoder_file
from splitmask_backbones.convert.keys import FROM_VITDET, is_simple_pyramid, to_ours, translate
from splitmask_backbones.convert.names import FAMILIES, PLAIN
from splitmask_backbones.convert.read import WeightsFile
from splitmask_backbones.convert.runs import encoder_of
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.load_report import LoadReport
from splitmask_backbones.registry import ENCODERS, encoder_name
from splitmask_backbones.relative_bias import num_rows
from splitmask_backbones.vit import check_arguments

logger = logging.getLogger(__name__)

HF_FIRST = "embeddings.patch_embeddings.projection.weight"
FIRST = "patch_embed.proj.weight"


@dataclass
class Source:
    """An encoder as a file describes it.

    Attributes:
        family: one of FAMILIES.
        config: arguments of `VisionTransformer`.
        state: its parameters.
        report: what became of every key of the file.
        tensors: the encoder's tensors under the family's own names, for the proof.
        hf_config: of a Hugging Face file.
        pyramid: the simple pyramid's parameters, of a ViTDet detector.
        unexpected: keys that nothing explains.
    """

    family: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    report: LoadReport
    tensors: dict[str, Tensor]
    hf_config: dict[str, Any] | None = None
    pyramid: dict[str, Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def prefix_of(file: WeightsFile) -> tuple[str, str]:
    """Returns what stands before the encoder's names, and the first of them: ours, or Hugging Face's.

    Raises:
        ValueError: no encoder in the file.
    """
    for first in (FIRST, HF_FIRST):
        found = sorted(name.removesuffix(first) for name in file.tensors if name.endswith(first))
        # Of MoCo v3's two encoders the base one, which its authors evaluate.
        found.sort(key=lambda prefix: "momentum" in prefix)
        if found:
            return found[0], first
    some = ", ".join(list(file.tensors)[:3])
    raise UserError(f"{file.path} holds no Vision Transformer (no {FIRST}; it has {some}, ...): name another file")


def detect(file: WeightsFile) -> str:
    """Returns the family that a file shows; "timm" for a bare encoder in the layout that five families share."""
    names = file.tensors.keys()
    if "config" in file.metadata or file.run is not None:
        return "splitmask"
    prefix, first = prefix_of(file)
    own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if first == HF_FIRST:
        return "hf"
    if prefix.endswith("net.") or any(name.endswith(("rel_pos_h", "rel_pos_w")) for name in own):
        return "vitdet"
    if any(re.search(r"gamma_[12]$|relative_position_bias_table$|attn\.q_bias$", name) for name in own):
        return "beit"
    if "encoder." in prefix:
        return "mocov3"
    if any(name.startswith("decoder_") for name in own):
        return "mae"
    if "teacher" in file.containers or "register_tokens" in own or any("head.last_layer" in name for name in names):
        return "dino"
    return "deit" if "dist_token" in own else "timm"


def read_source(file: WeightsFile, family: str, model: str | None, overrides: dict[str, Any]) -> Source:
    """Returns the encoder that a file describes.

    Args:
        file: of `read_weights`.
        family: one of FAMILIES, or "auto".
        model: a name of `list_encoders()` that the file must fit; also tells the number of heads.
        overrides: arguments of `VisionTransformer` that the file cannot tell (`--set`).

    Raises:
        ValueError: another family or model, or something that the file does not show.
    """
    check_choice("family", family, ("auto", *FAMILIES))
    check_arguments(overrides)
    found = detect(file)
    same_layout = family in PLAIN and found in PLAIN
    if family != "auto" and family != found and not same_layout:
        raise UserError(f"{file.path} is of the family '{found}' and not '{family}': use --from {found} or auto")
    family = found if family == "auto" else family
    if family == "splitmask":
        return _own(file, model)
    prefix, first = prefix_of(file)
    inside = {name.removeprefix(prefix): value for name, value in file.tensors.items() if name.startswith(prefix)}
    report = LoadReport(str(file.path))
    outside = [name for name in file.tensors if not name.startswith(prefix)]
    pyramid = {}
    if family == "vitdet":
        below = prefix.removesuffix("net.")
        pyramid = {n.removeprefix(below): file.tensors[n] for n in outside if is_simple_pyramid(n.removeprefix(below))}
        outside = [name for name in outside if not name.startswith(f"{below}simfp_")]
    report.dropped |= dict.fromkeys(outside, "not of the encoder")
    state, dropped, unexpected = to_ours(inside, from_hf=first == HF_FIRST)
    report.dropped |= dropped
    config = _config_of(file, family, state, model, overrides)
    if _fit_prefix_positions(state, config, family):
        height, width = (side // config["patch_size"] for side in config["img_size"])
        report.expected_missing["positions of tokens"] = (
            f"pos_embed holds {height} x {width} patches alone, tokens get zeros; another grid needs --set img_size"
        )
    _warn_of_guesses(file, family, config, told=model is not None or "num_heads" in overrides)
    if family == "vitdet":
        pyramid = _translated(pyramid, file)
        if "cls_token" in state:
            del state["cls_token"]
            report.dropped["cls_token"] = "ViTDet does not use it"
    tensors = {name: value for name, value in inside.items() if name not in dropped}
    report.loaded = sorted(state)
    return Source(family, config, state, report, tensors, file.hf_config, pyramid, unexpected)


def _translated(pyramid: dict[str, Tensor], file: WeightsFile) -> dict[str, Tensor]:
    try:
        return translate(pyramid, FROM_VITDET)
    except KeyError as error:
        raise UserError(f"{file.path} has a pyramid of another form ({error} is unknown): it is not ViTDet's") from None


def _own(file: WeightsFile, model: str | None) -> Source:
    report = LoadReport(str(file.path))
    pyramid: dict[str, Tensor] = {}
    if file.run is None:
        own = read_encoder_file(file.path)
        config, state, pyramid, report.partial = own.config, own.tensors, own.pyramid, own.partial
    else:
        config, state, others = encoder_of(file.path, file.run, file.tensors)
        report.dropped |= dict.fromkeys(others, "not of the encoder")
    if model is not None:
        _check_model(file, model, config)
    report.loaded = sorted(state)
    return Source("splitmask", config, state, report, state, pyramid=pyramid)


def _check_model(file: WeightsFile, model: str, config: dict[str, Any]) -> None:
    check_choice("model", model, ENCODERS)
    for key, expected in ENCODERS[model].items():
        if key != "num_heads" and config[key] != expected:
            name = encoder_name({"num_heads": config["embed_dim"] // 64, **config})
            remedy = f"give --model {name}" if name else "name the right one"
            raise UserError(f"{file.path} has {key} {config[key]}, but --model {model} has {expected}: {remedy}")


def _config_of(
    file: WeightsFile, family: str, state: dict[str, Tensor], model: str | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    weight = state["patch_embed.proj.weight"]
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks or "blocks.0.mlp.fc1.weight" not in state:
        raise UserError(f"{file.path} has no blocks that are a ViT's: it is not of the family '{family}'")
    config: dict[str, Any] = {
        "patch_size": weight.shape[2],
        "in_chans": weight.shape[1],
        "embed_dim": weight.shape[0],
        "depth": max(blocks) + 1,
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
        _check_model(file, model, config)
    if "blocks.0.ls1.gamma" in state:
        config["layer_scale"] = 1e-5  # of a new encoder; this one's values are loaded
    if file.hf_config is not None:
        config["layer_norm_eps"] = file.hf_config.get("layer_norm_eps", 1e-12)
    table = state.get("relative_position_bias_table", state.get("blocks.0.attn.relative_position_bias_table"))
    if table is not None:
        config["relative_position_bias"] = "shared" if "relative_position_bias_table" in state else "per_block"
    config["num_heads"] = _heads(file, config["embed_dim"], model, overrides, table)
    config["img_size"] = _img_size(file, family, state, config, overrides, table)
    if family == "vitdet":
        config |= _windows(file, state, overrides)
    return {**config, **overrides, "img_size": config["img_size"]}


def _heads(file: WeightsFile, dim: int, model: str | None, overrides: dict[str, Any], table: Tensor | None) -> int:
    if "num_heads" in overrides:
        return overrides["num_heads"]
    if table is not None:
        return table.shape[1]
    if file.hf_config is not None:
        return file.hf_config["num_attention_heads"]
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
    prefix = int(config["use_class_token"] or family == "vitdet") + config["num_registers"]
    if "img_size" in overrides:
        size = overrides["img_size"]
        return [size, size] if isinstance(size, int) else [int(side) for side in size]
    if "pos_embed" in state:
        rows = state["pos_embed"].shape[1]
        for count in range(prefix, -1, -1):
            side = math.isqrt(max(rows - count, 0))
            if side and side * side == rows - count:
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


def _windows(file: WeightsFile, state: dict[str, Tensor], overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns ViTDet's windows, which only the sizes of its relative-position tables show."""
    tables = {int(m[1]): v for n, v in state.items() if (m := re.fullmatch(r"blocks\.(\d+)\.attn\.rel_pos_h", n))}
    wide = {int(m[1]): v for n, v in state.items() if (m := re.fullmatch(r"blocks\.(\d+)\.attn\.rel_pos_w", n))}
    found: dict[str, Any] = {}
    if tables:
        largest = max(range(len(tables)), key=lambda i: tables[i].shape[0] + wide[i].shape[0])
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


def _warn_of_guesses(file: WeightsFile, family: str, config: dict[str, Any], told: bool) -> None:
    """Warns of what a file does not show and what its authors often did otherwise."""
    if family == "mocov3" and config["embed_dim"] == 384 and not told:
        logger.warning(
            "%s: MoCo v3's own ViT-S has 12 heads of 32 channels, %d are assumed: --set num_heads=12 if it is that",
            file.path,
            config["num_heads"],
        )
    if "student" in file.containers:
        logger.warning("%s holds no teacher, so the student is taken: DINO evaluates the teacher", file.path)


def _fit_prefix_positions(state: dict[str, Tensor], config: dict[str, Any], family: str) -> bool:
    """Gives prefix tokens without a position zeros; takes a row that ViTDet ignores away.

    Returns whether the class token had none, which the file alone does not show; DINOv2's registers never have one.
    """
    if "pos_embed" not in state:
        return False
    patch, (height, width) = config["patch_size"], config["img_size"]
    patches = -(-height // patch) * -(-width // patch)
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
