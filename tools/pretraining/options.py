"""What the command line of tools/pretrain.py says beside the values of the recipe. Free of torch."""

from dataclasses import dataclass

from pretrain.training.options import RunOptions
from tools import monitoring


@dataclass(frozen=True)
class PretrainOptions(monitoring.MonitorOptions, RunOptions):
    """What the command line says beside the values of the recipe.

    Attributes:
        data: image folder, text list, COCO json, or ADE20K root.
        images: image folder of a COCO json.
        include: globs of the images to take; None for all.
        exclude: globs of images to leave out.
        range: values of images with more than 8 bits that become 0 and 255; None for those of the data.
        tokenizer_weights: safetensors of DALL-E's encoder.
        cache: where decoded images are kept: a folder, or one of cache.AUTO and cache.OFF.
    """

    data: str
    images: str | None
    include: list[str] | None
    exclude: list[str] | None
    range: tuple[float, float] | None
    tokenizer_weights: str | None
    cache: str
