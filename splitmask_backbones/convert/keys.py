"""Names of parameters in other layouts, translated to this project's and back."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]

DROPPABLE = re.compile(
    r"(head|head_dist|fc_norm|lm_head|decoder|pooler|classifier|predictor|projector|momentum_encoder)\."
    r"|mask_token$|decoder_|.*relative_position_index$|.*\.k_bias$|embeddings\.mask_token$|pre_logits\."
)
"""What may be left out and is named in the report: heads, decoders, tokens and indexes of pre-training."""

OURS = re.compile(
    r"patch_embed\.proj\.(weight|bias)|cls_token|reg_token|pos_embed|norm\.(weight|bias)|relative_position_bias_table"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|blocks\.\d+\.ls[12]\.gamma"
    r"|blocks\.\d+\.attn\.(relative_position_bias_table|rel_pos_[hw])"
)

# Hugging Face's ViT, BEiT and DINOv2, and timm's names, which are ours; of blocks what follows their number.
_HF = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("encoder.relative_position_bias.relative_position_bias_table", "relative_position_bias_table"),
    ("layernorm", "norm"),
)
_HF_BLOCK = (
    ("attention.output.dense", "attn.proj"),
    ("attention.attention.relative_position_bias.relative_position_bias_table", "attn.relative_position_bias_table"),
    ("attention.attention", "attn"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("lambda_1", "ls1.gamma"),
    ("lambda_2", "ls2.gamma"),
)
# What DeiT and DINOv2 add; read only.
_HF_TOKENS = (("embeddings.register_tokens", "reg_token"), ("embeddings.distillation_token", "reg_token"))
_HF_SCALES = (("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"))
UNCHUNKED = (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")
"""DINOv2 keeps its blocks in chunks."""
SCALES = (r"gamma_([12])$", r"ls\1.gamma")
"""LayerScale as BEiT and DeiT III call it."""
_OTHERS = (UNCHUNKED, (r"^(register_tokens|dist_token)$", "reg_token"), SCALES, (r"^rel_pos_bias\.", ""))
# Ours -> mmseg's ViT and BEiT.
_MMSEG = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.(\d+)\.", r"layers.\1."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Returns the name after all rules in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _swap(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Returns the name with its beginning replaced, by the first pair whose left side it is."""
    for old, new in pairs:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def hf_to_ours(name: str) -> str:
    """Returns our name for one of Hugging Face's."""
    block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
    if block is None:
        return _swap(name, (*_HF, *_HF_TOKENS))
    return f"blocks.{block[1]}.{_swap(block[2], (*_HF_BLOCK, *_HF_SCALES))}"


def ours_to_hf(name: str) -> str:
    """Returns Hugging Face's name for one of ours."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    rest, pairs = (block[2], _HF_BLOCK) if block else (name, _HF)
    swapped = _swap(rest, ((ours, theirs) for theirs, ours in pairs))
    return f"encoder.layer.{block[1]}.{swapped}" if block else swapped


def to_ours(tensors: State, from_hf: bool) -> tuple[State, dict[str, str], list[str]]:
    """Returns the state in our names, what was dropped with the reason, and the names that nothing explains."""
    state: State = {}
    dropped: dict[str, str] = {}
    unexpected = []
    parts: dict[str, State] = {}
    for source, value in tensors.items():
        if DROPPABLE.match(source):
            dropped[source] = "head, decoder or index of its training"
            continue
        if is_simple_pyramid(source):
            continue
        name = rename(hf_to_ours(source) if from_hf else source, _OTHERS)
        split = re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)", name)
        half = re.fullmatch(r"(blocks\.\d+\.attn)\.([qv])_bias", name)
        if split:
            parts.setdefault(f"{split[1]}.qkv.{split[3]}", {})[split[2]] = value
        elif half:
            parts.setdefault(f"{half[1]}.qkv.bias", {})[{"q": "query", "v": "value"}[half[2]]] = value
        elif OURS.fullmatch(name) and name not in state:
            state[name] = value
        else:
            unexpected.append(source)
    for name, pieces in parts.items():
        if "query" not in pieces:
            unexpected += [f"{name} of {', '.join(pieces)} alone"]
            continue
        # BEiT's keys have no bias; softmax does not see one, so zeros are exact.
        zeros = torch.zeros_like(pieces["query"])
        state[name] = torch.cat([pieces["query"], pieces.get("key", zeros), pieces.get("value", zeros)])
    return state, dropped, unexpected


def to_beit(state: State) -> State:
    """Returns our state in the names of BEiT and timm's BEiT: q and v biases, gammas, a shared table below a module."""
    result: State = {}
    for name, value in state.items():
        if name.endswith("attn.qkv.bias"):
            query, _, value_bias = value.chunk(3)
            prefix = name.removesuffix("qkv.bias")
            result |= {f"{prefix}q_bias": query, f"{prefix}v_bias": value_bias}
        elif name == "relative_position_bias_table":
            result[f"rel_pos_bias.{name}"] = value
        else:
            result[re.sub(r"ls([12])\.gamma$", r"gamma_\1", name)] = value
    return result


def to_mmseg(state: State, as_beit: bool) -> State:
    """Returns our state in the names of mmseg's VisionTransformer, or of its BEiT."""
    result: State = {}
    for name, value in (to_beit(state) if as_beit else state).items():
        name = rename(name, _MMSEG)
        if not as_beit:
            name = re.sub(r"\.attn\.qkv\.(weight|bias)$", r".attn.attn.in_proj_\1", name)
            name = name.replace(".attn.proj.", ".attn.attn.out_proj.")
        result[name] = value
    return result


def to_hf(state: State, with_key_bias: bool) -> State:
    """Returns our state in the names of Hugging Face's ViTModel, or of BeitModel (`with_key_bias` False)."""
    result: State = {}
    for name, value in state.items():
        attention, is_qkv, kind = name.partition(".qkv.")
        if not is_qkv:
            result[ours_to_hf(name)] = value
            continue
        for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
            if part != "key" or kind == "weight" or with_key_bias:
                result[ours_to_hf(f"{attention}.{part}.{kind}")] = piece.contiguous()
    return result


# ViTDet's simple feature pyramid and ours.
_FIRST = {
    "levels.0": ("simfp_2", 4),
    "levels.1": ("simfp_3", 1),
    "levels.2": ("simfp_4", 0),
    "levels.3": ("simfp_5", 1),
}
_RESAMPLE = {
    "levels.0.resample.0": "simfp_2.0",
    "levels.0.resample.1": "simfp_2.1",
    "levels.0.resample.3": "simfp_2.3",
    "levels.1.resample.0": "simfp_3.0",
}


def _modules() -> dict[str, str]:
    modules = dict(_RESAMPLE)
    for ours, (theirs, first) in _FIRST.items():
        modules |= {
            f"{ours}.lateral": f"{theirs}.{first}",
            f"{ours}.lateral_norm": f"{theirs}.{first}.norm",
            f"{ours}.output": f"{theirs}.{first + 1}",
            f"{ours}.output_norm": f"{theirs}.{first + 1}.norm",
        }
    return modules


TO_VITDET = _modules()
"""Modules of `SimpleFeaturePyramid` -> modules of detectron2's, below the backbone."""
FROM_VITDET = {theirs: ours for ours, theirs in TO_VITDET.items()}


def is_simple_pyramid(name: str) -> bool:
    """Returns whether a key belongs to ViTDet's pyramid."""
    return name.startswith("simfp_")


def translate(state: dict[str, Tensor], modules: dict[str, str]) -> dict[str, Tensor]:
    """Returns the state with its modules renamed.

    Raises:
        KeyError: a module that the other pyramid does not have.
    """
    result = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        result[f"{modules[module]}.{kind}"] = value
    return result
