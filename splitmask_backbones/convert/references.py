"""The model that a file was made for, built with its own library, to compare outputs with."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from splitmask_backbones.convert.families import Source
from splitmask_backbones.convert.hf_models import hf_reference
from splitmask_backbones.convert.keys import SCALES, UNCHUNKED, rename
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.convert.timm_hub import hub_loaded, hub_model
from splitmask_backbones.convert.vitdet import vitdet_map
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer, cells

Forward = Callable[[Tensor], Tensor]
TOKENS, MAP = "tokens", "map"
"""What a model is compared by: `forward`'s tokens, or the last map before the final norm."""


def reference_of(source: Source) -> tuple[Forward, str]:
    """Returns a call from images to what the source's own model gives, and whether that is TOKENS or MAP.

    Raises:
        ValueError: the library is missing, or its model does not take the file's tensors.
    """
    if source.family == "vitdet":
        config = source.config
        forward = partial(
            vitdet_map,
            source.tensors,
            num_heads=config["num_heads"],
            window_size=config.get("window_size", 0),
            window_block_indexes=tuple(config.get("window_block_indexes", ())),
        )
        return forward, MAP
    if source.timm_config is not None:
        model = hub_model(source.path, source.timm_config)
        return hub_loaded(source.path, model, source.tensors).forward_features, TOKENS
    if source.family == "splitmask":
        return loaded(VisionTransformer(**source.config), source.state).forward, TOKENS
    if source.family == "hf":
        return hf_reference(source.path, source.hf_config or {}, source.tensors), TOKENS
    if source.family == "beit":
        return loaded(timm_beit(source.config), source.tensors).forward_features, TOKENS
    return _timm_of(source), TOKENS


def loaded(model: Any, state: dict[str, Tensor]) -> Any:
    """Returns the model in evaluation mode with exactly this state.

    Raises:
        ValueError: they do not fit.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{type(model).__name__} does not take the tensors: {' '.join(str(error).split())[:300]}"
        ) from None
    model.eval()  # mmseg's own `eval` returns None
    return model


def timm_vit(config: dict[str, Any], **kwargs: Any) -> nn.Module:
    """Returns timm's VisionTransformer for an encoder's arguments."""
    need("timm")
    from timm.models import vision_transformer

    arguments: dict[str, Any] = {
        **_timm_arguments(config),
        "class_token": config["use_class_token"],
        "reg_tokens": config["num_registers"],
        "pos_embed": "none" if config["positions"] == "none" else "learn",
        "final_norm": config["final_norm"],
        "dynamic_img_size": True,
    }
    return vision_transformer.VisionTransformer(**{**arguments, **kwargs})


def _timm_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what all of timm's ViTs take under the same names."""
    same = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias")
    return {
        **{name: config[name] for name in same},
        "img_size": tuple(config["img_size"]),
        "init_values": config.get("layer_scale"),
        "norm_layer": partial(nn.LayerNorm, eps=config.get("layer_norm_eps", 1e-6)),
        "num_classes": 0,
        "global_pool": "",
    }


def timm_beit(config: dict[str, Any]) -> nn.Module:
    """Returns timm's BEiT for an encoder's arguments."""
    need("timm")
    from timm.models.beit import Beit

    kind = config.get("relative_position_bias", "none")
    model = Beit(
        **_timm_arguments(config),
        use_abs_pos_emb=config["positions"] != "none",
        use_rel_pos_bias=kind == "per_block",
        use_shared_rel_pos_bias=kind == "shared",
    )
    if not config["final_norm"]:
        model.norm = nn.Identity()
    return model


def _timm_of(source: Source) -> Forward:
    config = source.config
    tensors = {rename(name, [UNCHUNKED, SCALES]): value for name, value in source.tensors.items()}
    if "dist_token" in tensors:
        need("timm")
        from timm.models.deit import VisionTransformerDistilled

        arguments = {**_timm_arguments(config), "global_pool": "token", "dynamic_img_size": True}
        return loaded(VisionTransformerDistilled(**arguments), tensors).forward_features
    kwargs: dict[str, Any] = {}
    if "register_tokens" in tensors:
        # DINOv2 adds positions to the class token and to patches, not to registers: timm folds the former in.
        table = tensors.pop("pos_embed")
        tensors |= {
            "reg_token": tensors.pop("register_tokens"),
            "cls_token": tensors["cls_token"] + table[:, :1],
            "pos_embed": table[:, 1:],
        }
        kwargs["no_embed_class"] = True
    elif "pos_embed" in tensors and config["use_class_token"]:
        patch, (height, width) = config["patch_size"], config["img_size"]
        kwargs["no_embed_class"] = tensors["pos_embed"].shape[1] == cells(height, patch) * cells(width, patch)
    return loaded(timm_vit(config, **kwargs), tensors).forward_features
