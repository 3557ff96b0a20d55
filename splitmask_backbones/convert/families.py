"""Which family a weights file is of, and the encoder that it describes."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from splitmask_backbones.checkpoints import are_pixel_stats, read_encoder_file
from splitmask_backbones.convert.arguments import arguments_of, check_model, fit_prefix_positions
from splitmask_backbones.convert.foreign import refuse_foreign
from splitmask_backbones.convert.keys import FROM_VITDET, is_simple_pyramid, to_ours, translate
from splitmask_backbones.convert.names import FAMILIES, PLAIN
from splitmask_backbones.convert.read import WeightsFile
from splitmask_backbones.convert.roles import PATCHES, rank, ranked
from splitmask_backbones.convert.runs import encoder_of
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.load_report import LoadReport
from splitmask_backbones.vit import check_arguments

logger = logging.getLogger(__name__)

FIRST, HF_FIRST = PATCHES


@dataclass
class Source:
    """An encoder as a file describes it.

    Attributes:
        family: one of FAMILIES.
        config: arguments of `VisionTransformer`.
        state: its parameters.
        report: what became of every key of the file.
        tensors: the encoder's tensors under the family's own names, for the proof.
        path: of the file.
        hf_config: of a Hugging Face file.
        timm_config: of a file in a folder that timm wrote.
        pixel_stats: "image_mean" and "image_std" that the file's folder names; None where it names none.
        pyramid: the simple pyramid's parameters, of a ViTDet detector.
        unexpected: keys that nothing explains.
    """

    family: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    report: LoadReport
    tensors: dict[str, Tensor]
    path: Path
    hf_config: dict[str, Any] | None = None
    timm_config: dict[str, Any] | None = None
    pixel_stats: dict[str, Any] | None = None
    pyramid: dict[str, Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def prefix_of(file: WeightsFile) -> tuple[str, str]:
    """Returns what stands before the encoder's names, and the first of them: ours, or Hugging Face's.

    Raises:
        ValueError: no encoder in the file.
    """
    for first in (FIRST, HF_FIRST):
        found = ranked(name.removesuffix(first) for name in file.tensors if name.endswith(first))
        if found:
            return found[0], first
    refuse_foreign(file.path, file.tensors)
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
    with_pyramid = any(is_simple_pyramid(name.removeprefix(prefix.removesuffix("net."))) for name in names)
    of_vitdet = prefix.endswith("backbone.net.") or prefix.endswith("net.") and with_pyramid
    if of_vitdet or any(name.endswith(("rel_pos_h", "rel_pos_w")) for name in own):
        return "vitdet"
    with_bias = any(name.endswith("attn.qkv.bias") for name in own)  # then scales are DeiT III's
    of_beit = r"relative_position_bias_table$|attn\.q_bias$" + ("" if with_bias else "|gamma_[12]$")
    if any(re.search(of_beit, name) for name in own):
        return "beit"
    if "encoder." in prefix:
        return "mocov3"
    if any(name.startswith("decoder_") for name in own):
        return "mae"
    roles = " ".join((*file.containers, prefix)).lower()
    token = file.tensors.get(f"{prefix}mask_token")
    of_dinov2 = token is not None and token.ndim == 2  # MAE's and BEiT's have three dimensions
    if (
        of_dinov2
        or "teacher" in roles
        or "student" in roles
        or "register_tokens" in own
        or any("head.last_layer" in name for name in names)
    ):
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
    check_choice("family", family, ("auto", *FAMILIES), "--from")
    check_arguments(overrides)
    found = detect(file)
    same_layout = family in PLAIN and found in PLAIN
    if {family, found} <= {"vitdet", *PLAIN} and prefix_of(file)[0].endswith("net."):
        same_layout = True  # anybody may call a model so
    if family != "auto" and family != found and not same_layout:
        raise UserError(f"{file.path} is of the family '{found}' and not '{family}': use --from {found} or auto")
    family = found if family == "auto" else family
    if family == "splitmask":
        return _own(file, model, overrides)
    refuse_foreign(file.path, file.tensors)
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
    _say_which(file, prefix, first, report)
    state, dropped, unexpected = to_ours(inside, from_hf=first == HF_FIRST)
    report.dropped |= dropped
    config = arguments_of(file, family, state, model, overrides)
    if fit_prefix_positions(state, config, family):
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
    return Source(
        family, config, state, report, tensors, file.path, file.hf_config, file.timm_config, _pixel_stats(file),
        pyramid, unexpected,
    )  # fmt: skip


def _translated(pyramid: dict[str, Tensor], file: WeightsFile) -> dict[str, Tensor]:
    try:
        return translate(pyramid, FROM_VITDET)
    except KeyError as error:
        raise UserError(f"{file.path} has a pyramid of another form ({error} is unknown): it is not ViTDet's") from None


def _own(file: WeightsFile, model: str | None, overrides: Mapping[str, Any]) -> Source:
    report = LoadReport(str(file.path))
    pyramid: dict[str, Tensor] = {}
    stats: dict[str, Any] | None = None
    if file.run is None:
        own = read_encoder_file(file.path)
        config, state, pyramid, report.partial = own.config, own.tensors, own.pyramid, own.partial
        stats = own.pixel_stats
        _warn_of_pixels(file, stats)
    else:
        config, state, others = encoder_of(file.path, file.run, file.tensors)
        report.dropped |= dict.fromkeys(others, "not of the encoder")
    for name, given in overrides.items():
        own_value, given = (list(v) if isinstance(v, tuple) else v for v in (config.get(name), given))
        if own_value != given:
            raise UserError(f"--set {name}={given}: {file.path} says itself that it is {own_value}, omit the option")
    if model is not None:
        check_model(file, model, config)
    report.loaded = sorted(state)
    return Source("splitmask", config, state, report, state, file.path, pixel_stats=stats, pyramid=pyramid)


USUAL_WIDTHS = (192, 384, 512, 768, 1024)
"""Of ViT-Ti, S, B and L, whose heads have 64 channels in all families but MoCo v3's, and of small ones made so."""
OTHER_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""By width, of published models whose heads do not have 64 channels: SO400M, ViT-H, ViT-g and ViT-G."""


def _warn_of_guesses(file: WeightsFile, family: str, config: dict[str, Any], told: bool) -> None:
    """Warns of what a file does not show and what its authors often did otherwise."""
    if family == "mocov3" and config["embed_dim"] == 384 and not told:
        logger.warning(
            "%s: MoCo v3's own ViT-S has 12 heads of 32 channels, %d are assumed: --set num_heads=12 if it is that",
            file.path,
            config["num_heads"],
        )
    shown = file.hf_config is not None or file.timm_config is not None or "relative_position_bias" in config
    width = config["embed_dim"]
    if not (told or shown or config.get("use_rel_pos") or width in USUAL_WIDTHS):
        usual = f"{OTHER_HEADS[width]}, as published models of this width" if width in OTHER_HEADS else "others"
        logger.warning(
            "%s does not show its heads, and both sides of the comparison follow the same guess: %d of %d channels are "
            "assumed, --set num_heads=N if it has %s",
            file.path,
            config["num_heads"],
            width // config["num_heads"],
            usual,
        )
    stats = _pixel_stats(file)
    if family == "beit" and stats is None:
        logger.warning(
            "%s does not say how its pixels were normalised: BEiT v1 had mean and deviation 0.5, BEiT v2 and this "
            "project's tools have ImageNet's: if it is v1, fine-tuning adapts, frozen features are somewhat off",
            file.path,
        )
    _warn_of_pixels(file, stats)


def _warn_of_pixels(file: WeightsFile, stats: dict[str, Any] | None) -> None:
    if stats is not None and stats != {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}:
        logger.warning(
            "%s was trained on pixels with mean %s and deviation %s, this project's tools normalise with ImageNet's: "
            "fine-tuning adapts, frozen features are somewhat off",
            file.path,
            stats["image_mean"],
            stats["image_std"],
        )


def _say_which(file: WeightsFile, prefix: str, first: str, report: LoadReport) -> None:
    """Says which of several ViTs of a file is taken: in the report where their roles decide, else in a warning."""
    around = ".".join(file.containers)
    taken = f"{around}.{prefix}".strip(".")
    others = [name.removesuffix(first) for name in file.tensors if name.endswith(first)]
    others = [f"{around}.{other}".strip(".") for other in ranked(others)[1:]] + [".".join(keys) for keys in file.others]
    if not others:
        if rank(taken) == 3 and "student" in taken.lower():
            logger.warning("%s holds no teacher, so the student is taken: DINO evaluates the teacher", file.path)
        return
    if rank(taken) < min(rank(other) for other in others):
        report.dropped |= dict.fromkeys((f"{other or 'others'}.*" for other in others), f"{taken or 'it'} is taken")
        logger.info("%s holds %s: %s is taken", file.path, ", ".join((taken, *others)), taken)
    else:
        logger.warning(
            "%s holds several ViTs, %s is taken and not %s", file.path, taken or "the first", ", ".join(others)
        )


def _pixel_stats(file: WeightsFile) -> dict[str, Any] | None:
    """Returns mean and deviation that the pixels of a file's training had, where its folder says so."""
    found: dict[str, Any] = file.processor or (file.timm_config or {}).get("pretrained_cfg") or {}
    mean, std = (found.get(f"image_{name}", found.get(name)) for name in ("mean", "std"))
    if found.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    stats = {"image_mean": mean, "image_std": std}
    return stats if are_pixel_stats(stats) else None
