"""An encoder as other libraries keep it: names, container, and the model that proves it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from splitmask_backbones.convert.graphs import batches_of_one_and_more, graph_of
from splitmask_backbones.convert.hf_models import config_for, hf_tokens, is_beit
from splitmask_backbones.convert.keys import TO_VITDET, State, to_beit, to_hf, to_mmseg, translate
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.convert.names import GRAPHS
from splitmask_backbones.convert.references import MAP, TOKENS, Forward, loaded, timm_beit, timm_vit
from splitmask_backbones.convert.vitdet import vitdet_map
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer


@dataclass
class Export:
    """What is written.

    Attributes:
        state: tensors by the target's names.
        container: key around them in a `.pth`, or None.
        forward: the target library's own model.
        kind: TOKENS or MAP, what `forward` gives.
        hf_config: of a Hugging Face folder.
        graph: the whole file of a graph, in place of a state.
        encoder: what `forward` has to equal; without the class token where the target has none.
        dropped: what the target has no place for, with the reason.
    """

    state: State
    container: str | None
    forward: Forward
    kind: str
    encoder: VisionTransformer
    dropped: dict[str, str]
    hf_config: dict[str, Any] | None = None
    graph: bytes | None = None


def export(
    encoder: VisionTransformer,
    target: str,
    pyramid: State,
    size: tuple[int, int] | None = None,
    pixel_stats: dict[str, Any] | None = None,
) -> Export:
    """Returns the encoder in the target's form.

    Args:
        encoder: in evaluation mode.
        target: one of TARGETS.
        pyramid: parameters of the pyramid that came with the encoder.
        size: of the images that a graph takes; None for the encoder's.
        pixel_stats: as of `graph_of`.

    Raises:
        ValueError: the encoder has something that the target cannot hold.
    """
    makers: dict[str, Callable[[VisionTransformer], Export]] = {
        "splitmask": lambda encoder: Export(_state_of(encoder), None, encoder.forward, TOKENS, encoder, {}),
        "timm": _timm,
        "detectron2": _detectron2,
        "mmseg": _mmseg,
        "hf": _hf,
        **dict.fromkeys(GRAPHS, lambda encoder: _graph(encoder, target, size or encoder.img_size, pixel_stats)),
    }
    made = makers[target](encoder)
    if target == "detectron2":
        made.state |= {f"backbone.{name}": value for name, value in translate(pyramid, TO_VITDET).items()}
    elif target != "splitmask":  # which keeps it beside the encoder
        made.dropped |= dict.fromkeys((f"pyramid.{name}" for name in pyramid), f"{target}'s model has no pyramid")
    return made


def _graph(encoder: VisionTransformer, target: str, size: tuple[int, int], pixel_stats: Any) -> Export:
    graph, forward = graph_of(encoder, target, size, pixel_stats)
    return Export({}, None, batches_of_one_and_more(forward), TOKENS, encoder, {}, graph=graph)


def _refuse(encoder: VisionTransformer, target: str, *features: str) -> None:
    config = encoder.config
    has = {
        "windows": bool(config["window_size"] and config["window_block_indexes"]),
        "decomposed relative positions": config["use_rel_pos"],
        "registers": config["num_registers"] > 0,
        "LayerScale": config["layer_scale"] is not None,
        "BEiT's relative-position bias": config["relative_position_bias"] != "none",
        "a shared relative-position bias": config["relative_position_bias"] == "shared",
        "no class token": not config["use_class_token"],
        "positions beside the relative bias": config["positions"] != "none"
        and config["relative_position_bias"] != "none",
        "no positions": config["positions"] == "none" and config["relative_position_bias"] == "none",
        "no final norm": not config["final_norm"],
    }
    for feature in features:
        if has[feature]:
            raise UserError(f"--to {target}: the encoder has {feature}, for which {target}'s model has no place")


def _state_of(encoder: VisionTransformer) -> State:
    """Returns the encoder's parameters, with positions that are computed written out for the grid of its img_size."""
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    if encoder.positions in ("sincos", "fourier"):
        state = {name: value for name, value in state.items() if not name.startswith("pos_proj.")}
        table = encoder.position_table(encoder.grid_size)
        assert table is not None
        state["pos_embed"] = table.detach().cpu()
    return state


def _timm(encoder: VisionTransformer) -> Export:
    _refuse(encoder, "timm", "windows", "decomposed relative positions")
    state, config = _state_of(encoder), encoder.config
    if config["relative_position_bias"] != "none":
        _refuse(encoder, "timm", "no class token")
        state = to_beit(state)
        return Export(state, None, loaded(timm_beit(config), state).forward_features, TOKENS, encoder, {})
    model = timm_vit({**config, "positions": "none" if "pos_embed" not in state else "learned"})
    return Export(state, None, loaded(model, state).forward_features, TOKENS, encoder, {})


def _without_class_token(encoder: VisionTransformer) -> VisionTransformer:
    if encoder.cls_token is None:
        return encoder
    bare = VisionTransformer(**{**encoder.config, "use_class_token": False}).eval()
    state = {name: value for name, value in encoder.state_dict().items() if name != "cls_token"}
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return loaded(bare, state)


def _detectron2(encoder: VisionTransformer) -> Export:
    _refuse(encoder, "detectron2", "registers", "LayerScale", "BEiT's relative-position bias")
    dropped = {}
    if encoder.cls_token is not None:
        dropped["cls_token"] = "detectron2's ViT has none: the encoder is compared without it"
    encoder = _without_class_token(encoder)
    config = encoder.config
    state = _state_of(encoder)  # with a final norm, which detectron2's ViT has not: its loading is lenient and names it
    if encoder.grid_size[0] != encoder.grid_size[1]:
        raise UserError(f"--to detectron2: its positions are square, the encoder's grid is {encoder.grid_size}")
    if "pos_embed" in state:  # its default expects a row for a class token in front, and ignores it
        state["pos_embed"] = torch.nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    forward = partial(
        vitdet_map,
        state,
        num_heads=config["num_heads"],
        window_size=config["window_size"],
        window_block_indexes=tuple(config["window_block_indexes"]),
    )
    whole = {f"backbone.net.{name}": value for name, value in state.items()}
    return Export(whole, "model", forward, MAP, encoder, dropped)


def _mmseg(encoder: VisionTransformer) -> Export:
    _refuse(encoder, "mmseg", "windows", "decomposed relative positions", "registers")
    need("splitmask_backbones.mmseg", "segmentation")
    from mmseg.models.backbones import BEiT
    from mmseg.models.backbones import VisionTransformer as MMSegViT

    config, state = encoder.config, _state_of(encoder)
    as_beit = is_beit(config)
    shared: dict[str, Any] = {
        "img_size": tuple(config["img_size"]),
        "patch_size": config["patch_size"],
        "in_channels": config["in_chans"],
        "embed_dims": config["embed_dim"],
        "num_layers": config["depth"],
        "num_heads": config["num_heads"],
        "out_indices": config["depth"] - 1,
        "final_norm": config["final_norm"],
        "norm_cfg": {"type": "LN", "eps": config["layer_norm_eps"]},
    }
    if as_beit:
        _refuse(encoder, "mmseg", "no class token", "a shared relative-position bias", "no positions")
        _refuse(encoder, "mmseg", "positions beside the relative bias")
        model = BEiT(**shared, mlp_ratio=round(config["mlp_ratio"]), qv_bias=config["qkv_bias"], init_values=1.0)
        if config["layer_scale"] is None:
            ones = torch.ones(config["embed_dim"])
            state |= {f"blocks.{i}.ls{j}.gamma": ones.clone() for i in range(config["depth"]) for j in (1, 2)}
    else:
        _refuse(encoder, "mmseg", "no positions")
        if encoder.cls_token is None:  # mmseg adds one, gives it a position and takes it out again
            state |= {
                "cls_token": torch.zeros(1, 1, config["embed_dim"]),
                "pos_embed": torch.nn.functional.pad(state["pos_embed"], (0, 0, 1, 0)),
            }
        model = MMSegViT(
            **shared,
            mlp_ratio=round(config["mlp_ratio"]),
            patch_bias=True,  # not its default: a config that takes these weights has to say so
            qkv_bias=config["qkv_bias"],
            with_cls_token=encoder.cls_token is not None,
        )
    state = to_mmseg(state, as_beit)
    buffers = {name: value for name, value in model.state_dict().items() if name.endswith("relative_position_index")}
    model = loaded(model, {**state, **buffers})
    model.final_norm = False  # its maps are compared before the norm, as ours are taken
    whole = {f"backbone.{name}": value for name, value in state.items()}
    return Export(whole, "state_dict", lambda images: model(images)[-1], MAP, encoder, {})


def _hf(encoder: VisionTransformer) -> Export:
    _refuse(encoder, "hf", "windows", "decomposed relative positions", "registers")
    config = encoder.config
    if is_beit(config):
        _refuse(encoder, "hf", "no class token")
    else:
        _refuse(encoder, "hf", "no positions", "no final norm")
    state = to_hf(_state_of(encoder), with_key_bias=not is_beit(config))
    # Without a final norm BeitModel pools by the mean: then it has no norm of its own.
    theirs = config_for(config, mean_pooling=not config["final_norm"])
    return Export(state, None, hf_tokens(theirs, state), TOKENS, encoder, {}, theirs.to_diff_dict())
