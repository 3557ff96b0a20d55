"""Layer-wise learning rates and the no-decay rule: the one truth for every trainer."""

from typing import Any

from torch import nn

from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer

NO_DECAY_NAMES = (
    "pos_embed",
    "cls_token",
    "reg_token",
    "rel_pos_h",
    "rel_pos_w",
    "relative_position_bias_table",
    "bias",  # mostly 1-D; that of linear probes has a row for each layer
)


def find_encoder(model: nn.Module) -> tuple[str, VisionTransformer] | None:
    """Returns the name prefix ("" or "backbone.encoder.") and the one `VisionTransformer` in a model, or None.

    One that is frozen altogether, such as a momentum teacher, does not count beside one that is trained.

    Raises:
        ValueError: the model holds more than one.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, VisionTransformer)]
    if len(found) > 1:
        found = [(name, module) for name, module in found if any(p.requires_grad for p in module.parameters())]
    if len(found) > 1:
        raise UserError(f"the model holds {len(found)} encoders ({', '.join(name for name, _ in found)}); expected one")
    if not found:
        return None
    name, encoder = found[0]
    return (f"{name}." if name else ""), encoder


def layer_of(name: str, depth: int) -> int:
    """Returns the layer of an encoder parameter: 0 for embeddings, i + 1 for block i, depth + 1 for the rest.

    Args:
        name: parameter name within the encoder.
        depth: its number of blocks.

    Raises:
        ValueError: a name that no rule covers.
    """
    head, _, rest = name.partition(".")
    if head in ("patch_embed", "pos_embed", "pos_proj", "cls_token", "reg_token"):
        return 0
    if head == "blocks":
        return int(rest.partition(".")[0]) + 1
    if head in ("norm", "relative_position_bias_table"):
        return depth + 1
    raise UserError(f"encoder parameter '{name}' belongs to no layer: extend splitmask_backbones.param_groups.layer_of")


def decays(name: str, ndim: int) -> bool:
    """Returns whether a parameter is weight-decayed: not when 1-D, nor of `NO_DECAY_NAMES`."""
    return ndim > 1 and name.rsplit(".", 1)[-1] not in NO_DECAY_NAMES


def param_groups(model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Returns optimizer groups for a model that holds the encoder, or is it.

    Parameters of the encoder get `lr * layer_decay ** (depth + 1 - layer)`, all others `lr` (BEiT's rule). Frozen
    parameters are left out.

    Args:
        model: any module with at most one `VisionTransformer`.
        lr: learning rate of the last layer.
        weight_decay: for parameters that `decays` names.
        layer_decay: factor per layer; 1.0 for none.

    Returns:
        Groups with `params, names, lr, lr_scale, weight_decay`, from the first layer to the last.

    Raises:
        ValueError: layer decay without an encoder, or an encoder parameter that no rule covers.
    """
    found = find_encoder(model)
    if found is None and layer_decay != 1.0:
        raise UserError(f"layer_decay {layer_decay} needs a VisionTransformer in the model, and there is none")
    prefix, depth = (found[0], found[1].depth) if found else ("", 0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name[len(prefix) :], depth) if found and name.startswith(prefix) else depth + 1
        with_decay = decays(name, parameter.ndim)
        scale = layer_decay ** (depth + 1 - layer)
        group = groups.setdefault(
            (layer, with_decay),
            {
                "params": [],
                "names": [],
                "lr": lr * scale,
                "lr_scale": scale,
                "weight_decay": weight_decay if with_decay else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
