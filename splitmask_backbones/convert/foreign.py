"""Families that cannot be converted, told by their keys, and what each has that the encoder has not."""

import re
from pathlib import Path

from torch import Tensor

from splitmask_backbones.errors import UserError

FOREIGN: dict[str, tuple[str, str]] = {
    "DINOv3": (r"(^|\.)(storage_tokens|rope_embed\.periods|layer\.0\.attention\.o_proj\.weight)$", "rotary positions"),
    "SAM 2": (r"(^|\.)(image_encoder|vision_encoder)\.(trunk|backbone)\.", "a backbone of four stages"),
    "SAM": (
        r"(^|\.)(image_encoder|vision_encoder)\.(patch_embed|neck)\.|(^|\.)neck\.0\.weight$|^prompt_encoder\.",
        "a neck after the blocks that its tokens were trained for",
    ),
    "CLIP": (
        r"(^|\.)(pre_layrnorm\.weight|norm_pre\.weight|class_embedding)$",
        "a norm before the first block, and often another activation (QuickGELU)",
    ),
    "SigLIP": (
        r"(^|\.)(attn_pool\.latent|head\.probe|embeddings\.patch_embedding\.bias)$",
        "an attention pool that its tokens were trained for, and another GELU (tanh)",
    ),
    "DINOv2 of giant size": (r"blocks\.(0\.)?0\.mlp\.w12\.|layer\.0\.mlp\.weights_in\.", "a gated MLP (SwiGLU)"),
    "EVA-02": (
        r"blocks\.0\.(mlp\.(fc1_g|w3|ffn_ln)|attn\.(inner_attn_ln|q_proj))\.|(^|\.)rope\.freqs_cos$",
        "a gated MLP (SwiGLU) and rotary positions",
    ),
    "mmseg or mmpretrain": (r"(^|\.)layers\.0\.ln1\.weight$", "names of its own, which are written but not read"),
    "torchvision": (r"(^|\.)encoder_layer_0\.ln_1\.weight$", "names of its own"),
    "Swin": (r"(^|\.)layers\.0\.blocks\.0\.", "four stages with windows that shift"),
}
"""Name -> what its keys match, and why it is refused. A family comes before those whose names it shares."""


def foreign_family(tensors: dict[str, Tensor]) -> tuple[str, str, str] | None:
    """Returns a family that is not converted, the key that shows it, and what it has that the encoder has not."""
    for family, (pattern, reason) in FOREIGN.items():
        for name in tensors:
            if re.search(pattern, name):
                return family, name, reason
    return _by_shapes(tensors)


def _by_shapes(tensors: dict[str, Tensor]) -> tuple[str, str, str] | None:
    """Tells families that use the names of others by what is missing, or of twice the width."""
    for name, weight in tensors.items():
        if not re.search(r"(^|\.)blocks\.0\.mlp\.fc1\.weight$", name):
            continue
        prefix = name.removesuffix("blocks.0.mlp.fc1.weight")
        down = tensors.get(f"{prefix}blocks.0.mlp.fc2.weight")
        if down is not None and down.ndim == weight.ndim == 2 and weight.shape[0] == 2 * down.shape[1]:
            family = "EVA-02" if f"{prefix}blocks.0.attn.q_bias" in tensors else "DINOv2 of giant size"
            return family, name, "a gated MLP (SwiGLU)"
        own = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
        has_positions = any("pos_embed" in key or "relative_position" in key or "rel_pos" in key for key in own)
        if "blocks.0.gamma_1" in own and "reg_token" in own and not has_positions:
            return "DINOv3", f"{prefix}reg_token", "rotary positions"
    return None


def refuse_foreign(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises ValueError for a file of a family that is not converted."""
    found = foreign_family(tensors)
    if found is not None:
        family, key, reason = found
        raise UserError(
            f"{path} is of {family} (it has {key}), which has {reason}: it is not converted; plain ViTs of timm, DeiT, "
            "BEiT, DINO, DINOv2, MAE, MoCo v3, ViTDet and Hugging Face are"
        )
