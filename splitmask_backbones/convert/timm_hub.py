"""A timm model as its config.json names it (`save_for_hf`, the timm folders of the Hugging Face hub)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from splitmask_backbones.convert.keys import DROPPABLE
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.errors import UserError

USED = frozenset({"architecture", "model_args", "num_classes", "global_pool"})
HARMLESS = frozenset({"num_features", "pretrained_cfg", "license", "tags", "custom_load", "input_size"})
HARMLESS |= {"label_names", "label_descriptions"}
"""Fields that tell how the model is used: its input's statistics are looked at elsewhere."""


def hub_model(path: Path, config: dict[str, Any]) -> Any:
    """Returns timm's model of a config.json, with random weights, on the default device.

    Args:
        path: of the weights, for the message.
        config: of config.json.

    Raises:
        ValueError: an unknown architecture or field, or an activation that the encoder does not have.
    """
    need("timm")
    import timm

    where = path.parent / "config.json"
    for name, value in config.items():
        if name not in USED and name not in HARMLESS and value is not None:
            raise UserError(f"{where} has the field {name} ({str(value)[:40]!r}), whose effect is not known here")
    architecture = str(config["architecture"])
    arguments = {key: config[key] for key in ("num_classes", "global_pool") if config.get(key) is not None}
    try:
        model = timm.create_model(architecture, pretrained=False, **{**arguments, **(config.get("model_args") or {})})
    except Exception as error:  # of timm's registry and constructors
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{where}: timm does not build the architecture {architecture!r} ({reason})") from None
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(blocks[0], "attn"):
        raise UserError(f"{where} says architecture {architecture!r}, which is no plain ViT: it is not converted")
    activation = getattr(blocks[0].mlp, "act", None)
    if not isinstance(activation, nn.GELU) or activation.approximate != "none":
        name = type(activation).__name__ + ("" if not isinstance(activation, nn.GELU) else " (tanh)")
        raise UserError(
            f"{where} says architecture {architecture!r}, whose activation is {name}: only GELU is converted"
        )
    return model


def hub_arguments(model: Any) -> dict[str, Any]:
    """Returns the arguments of `VisionTransformer` that a model of timm tells and its tensors do not."""
    block = model.blocks[0]
    return {
        "num_heads": block.attn.num_heads,
        "layer_norm_eps": block.norm1.eps,
        "img_size": [int(side) for side in model.patch_embed.img_size],
    }


def hub_loaded(path: Path, model: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns the model in evaluation mode with a file's tensors; heads alone may be missing.

    Raises:
        ValueError: the tensors are not the model's.
    """
    try:
        found = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its config.json: {' '.join(str(error).split())[:300]}") from None
    wrong = [name for name in found.missing_keys if not DROPPABLE.match(name)] + list(found.unexpected_keys)
    if wrong:
        raise UserError(f"{path} does not fit its config.json: {len(wrong)} names differ, such as {wrong[0]}")
    return model.eval()
