"""The model that a file was made for, built with its own library, to compare outputs with."""

import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from splitmask_backbones.convert.families import Source
from splitmask_backbones.convert.keys import UNCHUNKED, rename
from splitmask_backbones.convert.vitdet import vitdet_map
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer

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
    if source.family == "splitmask":
        return loaded(VisionTransformer(**source.config), source.state).forward, TOKENS
    if source.family == "hf":
        return hf_tokens(source.config, source.tensors, mean_pooling="norm.weight" not in source.state), TOKENS
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


def need(library: str, extra: str = "convert") -> None:
    """Raises ValueError where a library that proves a conversion is missing."""
    try:
        import_module(library)
    except ImportError as error:
        raise UserError(
            f"the conversion is proved with {library}, which cannot be imported ({error}): install the extra '{extra}'"
        ) from None


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
    tensors = {rename(name, [UNCHUNKED]): value for name, value in source.tensors.items()}
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
        kwargs["no_embed_class"] = tensors["pos_embed"].shape[1] == -(-height // patch) * -(-width // patch)
    return loaded(timm_vit(config, **kwargs), tensors).forward_features


def hf_model(config: dict[str, Any], mean_pooling: bool = False) -> Any:
    """Returns the model of Hugging Face that the encoder is.

    That is ViTModel; BeitModel with BEiT's bias or LayerScale; IJepaModel, the same ViT, without a class token.
    """
    need("transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from transformers import BeitConfig, BeitModel, IJepaConfig, IJepaModel, ViTConfig, ViTModel

    height, width = config["img_size"]
    if height != width:
        raise UserError(f"Hugging Face's models are square, the encoder's img_size is {config['img_size']}")
    shared: dict[str, Any] = {
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": int(config["embed_dim"] * config["mlp_ratio"]),
        "image_size": height,
        "patch_size": config["patch_size"],
        "num_channels": config["in_chans"],
        "layer_norm_eps": config.get("layer_norm_eps", 1e-6),
    }
    if is_beit(config):
        kind = config.get("relative_position_bias", "none")
        beit = BeitConfig(
            **shared,
            use_absolute_position_embeddings=config["positions"] != "none",
            use_relative_position_bias=kind == "per_block",
            use_shared_relative_position_bias=kind == "shared",
            use_mean_pooling=mean_pooling,
            layer_scale_init_value=config.get("layer_scale") or 0.0,
        )
        return BeitModel(beit, add_pooling_layer=False)
    if not config["use_class_token"]:
        return IJepaModel(IJepaConfig(**shared, qkv_bias=config["qkv_bias"]), add_pooling_layer=False)
    return ViTModel(ViTConfig(**shared, qkv_bias=config["qkv_bias"]), add_pooling_layer=False)


def is_beit(config: dict[str, Any]) -> bool:
    """Returns whether an encoder has what BEiT adds to a ViT."""
    return config.get("relative_position_bias", "none") != "none" or config.get("layer_scale") is not None


def hf_tokens(config: dict[str, Any], tensors: dict[str, Tensor], mean_pooling: bool) -> Forward:
    """Returns a call from images to the last hidden state of Hugging Face's own model with these tensors.

    They go through a folder and `from_pretrained`, because the names in files are not those of all versions' modules.
    """
    model = hf_model(config, mean_pooling)
    state = {name: value.contiguous() for name, value in tensors.items() if not name.endswith("position_index")}
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(state, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        model, found = type(model).from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    wrong = [key for key in (*found["missing_keys"], *found["unexpected_keys"]) if not key.endswith("position_index")]
    if wrong or found["mismatched_keys"]:
        first = (wrong or [str(found["mismatched_keys"])])[0]
        raise UserError(f"{type(model).__name__} does not take the tensors: {len(wrong)} names differ, such as {first}")
    model.eval()

    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        return model(images).last_hidden_state

    return forward
