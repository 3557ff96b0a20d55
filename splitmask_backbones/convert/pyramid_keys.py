"""Names of ViTDet's simple feature pyramid and of ours, both ways."""

from torch import Tensor

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
