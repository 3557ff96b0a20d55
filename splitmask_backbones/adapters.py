"""What all framework adapters share: from a name, a module or a file to the encoder of a detector."""

import copy
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from splitmask_backbones.checkpoints import load_encoder, read_encoder_file, with_overrides
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.pyramid import PYRAMIDS, tap_indices
from splitmask_backbones.registry import ENCODERS, create_encoder, encoder_name, named_sizes
from splitmask_backbones.vit import VisionTransformer, check_arguments


def parameters_of(adapter: Callable[..., Any]) -> list[str]:
    """Returns the names that an adapter takes itself, beside the encoder's."""
    parameters = inspect.signature(adapter).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def shallow_copy(encoder: VisionTransformer) -> VisionTransformer:
    """Returns an encoder of the same modules, parameters, hooks and attributes, which can be given others."""
    made = copy.copy(encoder)
    for name in ("_modules", "_parameters", "_buffers"):
        setattr(made, name, dict(getattr(encoder, name)))
    return made


def resolve_encoder(
    encoder: str | VisionTransformer | None = None,
    weights: str | Path | None = None,
    *,
    pyramid: str = "simple",
    own: Iterable[str] = ("encoder", "weights", "pyramid", "out_channels"),
    **overrides: Any,
) -> VisionTransformer:
    """Returns the encoder that an adapter puts under its pyramid.

    Without a norm on the maps it is built with `final_norm=False`, so that no parameter stays without a gradient;
    pyramids other than the simple one set `out_indices` to their four taps.

    Args:
        encoder: a name of `list_encoders()`, or a ready `VisionTransformer`, which stays as it is: where a norm is
            not needed or an argument is another, the adapter has an encoder of its own on the same parameters. None
            with `weights` lets the file decide.
        weights: an encoder file of `save_encoder`, loaded strictly.
        pyramid: "simple", "tapped" or "taps".
        own: names that the adapter takes itself, to be proposed for a misspelt one.
        **overrides: keyword arguments of `VisionTransformer`. An `embed_dim` and a `depth` are those of random init: a
            file of the named encoder's own sizes is taken as it is, so that a small config serves it too.

    Raises:
        ValueError: neither encoder nor weights, a name that contradicts the file, unknown names or keys, a ready
            module together with weights, or with arguments that contradict it, or `final_norm=True` without a norm on
            the maps.
    """
    check_choice("pyramid", pyramid, PYRAMIDS)
    check_arguments(overrides, own)
    if isinstance(encoder, VisionTransformer):
        if weights is not None:
            raise UserError("a ready encoder takes no weights: give one of the two, load_encoder(path, ...) has both")
        return _of_module(encoder, pyramid, overrides)
    if isinstance(encoder, nn.Module):
        raise UserError(
            f"encoder: a {type(encoder).__name__} is no VisionTransformer: give the one in it, and wrap the whole model"
        )
    if encoder is not None:
        check_choice("encoder", encoder, ENCODERS)
    if weights is not None:
        return _of_file(weights, encoder, pyramid, overrides)
    if encoder is None:
        raise UserError(f"name an encoder ({', '.join(ENCODERS)}) or give a weights file")
    depth = overrides.get("depth", ENCODERS[encoder]["depth"])
    return create_encoder(encoder, **_for_maps(pyramid, depth, overrides))


def _of_module(encoder: VisionTransformer, pyramid: str, overrides: dict[str, Any]) -> VisionTransformer:
    """Returns a ready encoder, or one of its parameters that has the taps and the norm that the pyramid needs."""
    if overrides:
        _check_norm(overrides, encoder.norm_maps)
        encoder = with_overrides(encoder, **overrides)
    wanted = _for_maps(pyramid, encoder.depth, {}, encoder.norm_maps)
    fits = "out_indices" in overrides or pyramid == "simple" or len(encoder.out_indices) == 4
    taps = encoder.out_indices if fits else wanted["out_indices"]
    needs_no_norm = "final_norm" in wanted and not isinstance(encoder.norm, nn.Identity)
    if not needs_no_norm and taps == encoder.out_indices:
        return encoder
    made = shallow_copy(encoder)
    made.out_indices = taps
    made.config = made.config | {"out_indices": list(taps)}
    if needs_no_norm:
        made.norm = nn.Identity()
        made.config |= {"final_norm": False}
    return made


def _of_file(weights: str | Path, name: str | None, pyramid: str, overrides: dict[str, Any]) -> VisionTransformer:
    """Returns the encoder of a file, which has to be of the named encoder's sizes or of those that are given."""
    config = read_encoder_file(weights).config
    if name is not None and encoder_name(config) == name:
        overrides = {key: given for key, given in overrides.items() if key not in ("embed_dim", "depth")}
    elif name is not None:
        for key, size in ENCODERS[name].items():
            expected = overrides.get(key, size)
            if config[key] != expected:
                names = named_sizes(config) or {}
                named = f" ({', '.join(f'{key}={size}' for key, size in names.items())})" if names else ""
                raise UserError(
                    f"weights file {weights} has {key} {config[key]}, encoder '{name}' has {expected}: "
                    f"name the encoder of the file{named}, or take that of the file with encoder=none"
                )
    depth, norm_maps = overrides.get("depth", config["depth"]), config.get("norm_maps", False)
    return load_encoder(weights, **_for_maps(pyramid, depth, overrides, norm_maps))


def check_whole(missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str], remedy: str) -> None:
    """Raises ValueError, with counts and the first name, where a checkpoint holds another backbone than this one.

    Host frameworks load what fits and warn of the rest: a detector whose positions stay random still runs.
    """
    kinds = {"missing": list(missing), "unexpected": list(unexpected), "of another shape": list(misshapen)}
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
    first = next((names[0] for kind in ("missing", "of another shape", "unexpected") if (names := kinds[kind])), None)
    if first is not None:
        raise UserError(f"the checkpoint does not hold this backbone ({counts}; the first is {first}): {remedy}")


def _check_norm(overrides: dict[str, Any], norm_maps: bool) -> None:
    if overrides.get("final_norm") and not overrides.get("norm_maps", norm_maps):
        raise UserError(
            "final_norm=True: no map passes through the final norm, which would stay without a gradient: "
            "leave it out, or add norm_maps=True"
        )


def _for_maps(pyramid: str, depth: int, overrides: dict[str, Any], norm_maps: bool = False) -> dict[str, Any]:
    _check_norm(overrides, norm_maps)
    out_indices = (depth - 1,) if pyramid == "simple" else tap_indices(depth)
    derived: dict[str, Any] = {"out_indices": out_indices}
    if not overrides.get("norm_maps", norm_maps):
        derived["final_norm"] = False
    return {**derived, **overrides}
