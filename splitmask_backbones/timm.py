"""timm adapter: `import splitmask_backbones.timm` registers `vit_{tiny,small,base,large}_patch16_splitmask`.

The models are timm's own VisionTransformer, with everything it can do; `checkpoint_path=` takes an encoder file:

    timm.create_model("vit_small_patch16_splitmask", checkpoint_path="encoder.safetensors", num_classes=10)
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from splitmask_backbones.errors import UserError
from splitmask_backbones.position import resize_pos_embed
from splitmask_backbones.registry import ENCODERS

try:
    from timm.models import build_model_with_cfg, register_model
    from timm.models.vision_transformer import VisionTransformer
except ImportError as error:
    raise ImportError(f"splitmask_backbones.timm needs timm, and {error}: install the extra 'timm'") from error

logger = logging.getLogger(__name__)


def _create(encoder: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Returns timm's VisionTransformer in the encoder's size, or its feature extractor, able to load encoder files."""
    if pretrained:
        raise UserError("there are no published SplitMask weights: give checkpoint_path=encoder.safetensors")
    defaults: dict[str, Any] = {
        **ENCODERS[encoder],
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,  # the file's norm comes before the pooling
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    out_indices = kwargs.pop("out_indices", 3)
    kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or {"input_size": (3, 224, 224), "num_classes": 1000}
    model = build_model_with_cfg(
        VisionTransformer,
        f"{encoder}_patch16_splitmask",
        False,
        pretrained_strict=True,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**defaults, **kwargs},
    )
    inner = model if isinstance(model, VisionTransformer) else model.model
    if inner is not model:  # features_only: timm hands it the file's names, which lack its own prefix
        model.register_load_state_dict_pre_hook(_add_prefix)
    inner.register_load_state_dict_pre_hook(_fit_encoder_file)
    return model


def _add_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in [name for name in state if not name.startswith(f"{prefix}model.")]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)


def _fit_encoder_file(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Makes the state of an encoder file that of this model: its own head, another image size, fewer blocks."""
    if f"{prefix}cls_token" in state and module.cls_token is None:
        raise UserError("the file has a class token: add class_token=True, global_pool='token' to create_model")
    own = module.state_dict()
    _check_sizes(own, state, prefix)
    depth = _depth(own, "blocks.")
    for name in list(state):
        inside = name.removeprefix(prefix)
        block = int(inside.split(".")[1]) if inside.startswith("blocks.") else 0
        if inside.startswith("pyramid.") or inside not in own and inside.startswith("norm.") or block >= depth:
            del state[name]
        elif inside.startswith("blocks.") and inside not in own:
            raise UserError(
                f"the file has {inside}, which timm's model of these arguments has not (layer scale needs init_values; "
                "relative positions and windows are not timm's ViT): use splitmask_backbones.load_encoder"
            )
    for name, value in own.items():
        if name.startswith(("head.", "fc_norm.")):
            state.setdefault(f"{prefix}{name}", value)
    table = state.get(f"{prefix}pos_embed")
    if table is not None and "pos_embed" in own:
        prefix_tokens = 0 if module.no_embed_class else module.num_prefix_tokens
        side = math.isqrt(table.shape[1] - prefix_tokens)
        rows, columns = module.patch_embed.grid_size
        if table.shape == own["pos_embed"].shape:
            if rows != columns and side * side == rows * columns:  # a state dict does not hold the grid
                logger.warning(
                    "pos_embed has %d positions, those of this model's %d x %d patches: were they a square's, use "
                    "splitmask_backbones.load_encoder",
                    rows * columns, rows, columns,
                )  # fmt: skip
        elif side * side == table.shape[1] - prefix_tokens and table.shape[2] == own["pos_embed"].shape[2]:
            state[f"{prefix}pos_embed"] = resize_pos_embed(
                table, (side, side), tuple(module.patch_embed.grid_size), prefix_tokens, "antialias"
            )


def _check_sizes(own: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> None:
    """Raises ValueError for a file that is narrower, wider or shallower than the model, with the model that fits it."""
    key = "patch_embed.proj.weight"
    if f"{prefix}{key}" not in state:
        return  # strict loading says what is missing
    width, depth = state[f"{prefix}{key}"].shape[0], _depth(state, f"{prefix}blocks.")
    if width == own[key].shape[0] and depth >= _depth(own, "blocks."):
        return
    names = [name for name, sizes in ENCODERS.items() if (sizes["embed_dim"], sizes["depth"]) == (width, depth)]
    remedy = (
        f"create {names[0]}_patch16_splitmask" if names else f"add embed_dim={width}, depth={depth} and its num_heads"
    )
    raise UserError(
        f"the file has {depth} blocks of width {width}, the model {_depth(own, 'blocks.')} of width "
        f"{own[key].shape[0]}: {remedy}"
    )


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix)), default=-1)


def _entry(encoder: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(encoder, pretrained, **kwargs)

    create.__name__ = f"{encoder}_patch16_splitmask"
    create.__module__ = __name__
    create.__doc__ = f"Returns timm's VisionTransformer in the size of {encoder}; loads encoder files."
    globals()[create.__name__] = create
    return register_model(create)


for _encoder in ENCODERS:
    _entry(_encoder)
