"""What the command line of tools/pretrain.py says beside the values of the recipe. Free of torch."""

from dataclasses import dataclass

from pretrain.training.options import OFF, RunOptions
from splitmask_backbones.errors import UserError
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
        init: encoder file or folder to begin with; None for random initialisation.
        cache: where decoded images are kept: a folder, or AUTO or OFF.
    """

    data: str
    images: str | None
    include: list[str] | None
    exclude: list[str] | None
    range: tuple[float, float] | None
    tokenizer_weights: str | None
    init: str | None
    cache: str

    def check_cache(self, reduced_jpeg: bool) -> None:
        """Raises ValueError where images are to be kept in full and to be decoded in part."""
        if reduced_jpeg and self.cache != OFF:
            raise UserError(
                f"--cache {self.cache} keeps whole images, and --reduced-jpeg true decodes them anew at the size that "
                "each crop needs: omit one of the two"
            )
