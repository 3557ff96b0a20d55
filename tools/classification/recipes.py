"""Classification recipes by name: the paper's settings (App. E), and small ones. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pretrain.training.options import PRECISIONS
from pretrain.training.recipe import ABOVE_ZERO, CheckedRecipe, value
from pretrain.training.schedule import warmup_cosine
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.registry import ENCODERS

DOMAINS = ("clipart", "painting", "sketch")
"""The DomainNet sets that the paper uses; a recipe each."""


@dataclass(frozen=True)
class ClsRecipe(CheckedRecipe):
    """Every value that decides what fine-tuning computes; by default those that all rows of App. E share.

    The paper lists colour jitter of 0.4 beside RandAugment, as the options of DeiT's training script do. There timm
    leaves the jitter away where RandAugment is on, and so it is here: `--force-color-jitter true` applies both.
    """

    model: str = value("vit_small", "encoder of --weights none; a weights file decides itself", choices=tuple(ENCODERS))
    # images
    img_size: int = value(224, "side of the crop in pixels", low=8, high=4096)
    crop_scale: float = value(0.08, "least share of the image's area in a training crop", low=0.001, high=1)
    flip: float = value(0.5, "probability of a horizontal flip", low=0, high=1)
    color_jitter: float = value(
        0.4, "strength of brightness, contrast and saturation changes where RandAugment is off", low=0, high=1
    )
    force_color_jitter: bool = value(False, "colour jitter after RandAugment as well")
    randaugment: float = value(9.0, "magnitude of RandAugment (2 operations); 0 switches it off", low=0, high=10)
    randaugment_std: float = value(0.5, "spread of its magnitude", low=0, high=10)
    repeats: int = value(1, "appearances of an image in an epoch (repeated augmentation); 1 for none", low=1, high=16)
    mixup: float = value(0.8, "alpha of mixup; 0 switches it off", low=0, high=100)
    cutmix: float = value(1.0, "alpha of cutmix; 0 switches it off", low=0, high=100)
    label_smoothing: float = value(0.1, "share of a label given to all classes", low=0, high=0.99)
    test_crop: float = value(0.875, "side of the center test crop over the resized short side", low=0.01, high=1)
    # optimisation
    epochs: int | None = value(300, "epochs of floor(images / batch) steps", low=1)
    steps: int | None = value(None, "steps of the whole run, in place of --epochs", low=1)
    batch_size: int = value(1024, "images per step over all processes and accumulated micro-batches", low=1)
    accumulate: int = value(1, "micro-batches per step", low=1)
    lr: float = value(4e-3, "peak learning rate of AdamW; follows --batch-size linearly unless given", low=ABOVE_ZERO)
    layer_decay: float = value(1.0, "factor a layer of the encoder on the lr; 1 for none", low=0.01, high=1)
    weight_decay: float = value(0.05, "none on 1-D parameters and positions", low=0)
    beta2: float = value(0.999, "AdamW's second beta", low=0, high=0.999999)
    clip_grad: float = value(0.0, "largest gradient norm; 0 for any", low=0)
    warmup_fraction: float = value(5 / 300, "share of the steps that warm up linearly", low=0, high=1)
    end_lr: float = value(1e-6, "last learning rate of the cosine", low=0)
    drop_path: float = value(0.1, "stochastic depth of the encoder", low=0, high=0.99)
    ema: float | None = value(None, "decay of the average of weights that is evaluated and kept", low=0, high=1)
    eval_every: int = value(0, "steps between evaluations, the best model is kept; 0 for none", low=0)
    seed: int = value(0, "seed of everything random", low=0, high=2**62)
    precision: str = value("32", "bf16 is mixed precision", choices=PRECISIONS)

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot work, naming option and remedy."""
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise UserError(f"--batch-size {self.batch_size} must be a multiple of --accumulate {self.accumulate}")
        if self.mixes and self.batch_size // self.accumulate % 2:
            raise UserError(
                f"mixup and cutmix pair the images of a micro-batch, and {self.batch_size // self.accumulate} is odd: "
                "use an even --batch-size, or --mixup 0 --cutmix 0"
            )

    @property
    def jitters(self) -> bool:
        """Whether colours are jittered: with RandAugment only where it is forced, as in timm."""
        return self.color_jitter > 0 and (self.randaugment == 0 or self.force_color_jitter)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Returns the factor on the peak lr at a step (0-based) of a run of `total_steps`."""
        end_factor = min(1.0, self.end_lr / self.lr)
        return warmup_cosine(step, total_steps, round(self.warmup_fraction * total_steps), end_factor)


# App. E: iNaturalist and Food-101.
_LARGE: dict[str, Any] = {"lr": 1.4e-4, "warmup_fraction": 5 / 300, "repeats": 3, "randaugment": 7.0}
# App. E: Stanford Cars and DomainNet.
_TINY_SETS: dict[str, Any] = {"lr": 4e-3, "layer_decay": 0.65, "warmup_fraction": 60 / 300, "randaugment": 9.0}
# The paper gives no settings for its supervised rows. Ours: DeiT's for ImageNet (without its random erasing), and as
# many steps as on the whole set, as the paper does for pre-training.
_SUPERVISED: dict[str, Any] = {"lr": 1e-3, "repeats": 3}
# Few images and no GPU: short runs of a small model; mixing images of a few classes teaches less than it costs. Ours.
_CPU: dict[str, Any] = {
    "model": "vit_tiny",
    "lr": 1e-3,
    "layer_decay": 0.75,
    "warmup_fraction": 0.1,
    "randaugment": 5.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "epochs": None,
}

RECIPES: dict[str, tuple[str, ClsRecipe]] = {
    "inat18": ("iNaturalist 2018, 8,142 species", ClsRecipe(**_LARGE)),
    "inat19": ("iNaturalist 2019, 1,010 species", ClsRecipe(**_LARGE)),
    "food101": ("Food-101", ClsRecipe(**_LARGE)),
    "cars": ("Stanford Cars, 196 models", ClsRecipe(**_TINY_SETS)),
    "clipart": ("DomainNet Clipart, 345 classes", ClsRecipe(**_TINY_SETS)),
    "painting": ("DomainNet Painting, 345 classes", ClsRecipe(**_TINY_SETS)),
    "sketch": ("DomainNet Sketch, 345 classes", ClsRecipe(**_TINY_SETS)),
    # The paper gives the accuracy (ViT-S 81.5, ViT-B 83.6) without settings. Ours: BEiT's for ViT-B, but for its random
    # erasing.
    "imagenet": ("ImageNet fine-tuning", ClsRecipe(lr=4e-3, layer_decay=0.65, epochs=100, warmup_fraction=20 / 100)),
    "imagenet_10percent": ("supervised on the balanced 10 % of ImageNet", ClsRecipe(**_SUPERVISED, epochs=3_000)),
    "imagenet_1percent": ("supervised on the balanced 1 % of ImageNet", ClsRecipe(**_SUPERVISED, epochs=30_000)),
    # Ours: the tiny sets' settings for fewer images, shorter.
    "folder": (
        "any thousands of labelled images, a GPU",
        ClsRecipe(lr=1e-3, batch_size=256, layer_decay=0.65, epochs=100, warmup_fraction=0.1),
    ),
    "small": (
        "a few hundred images on a CPU",
        ClsRecipe(**_CPU, img_size=96, crop_scale=0.3, batch_size=32, steps=300),
    ),
    "tiny": ("a test on a CPU in seconds", ClsRecipe(**_CPU, img_size=32, crop_scale=0.5, batch_size=8, steps=10)),
}


def get_recipe(name: str | None) -> ClsRecipe:
    """Returns the recipe called `name`.

    Raises:
        ValueError: no name, or an unknown one, with the nearest right one.
    """
    if name is None:
        raise UserError(f"--recipe NAME is needed for training: choose from {', '.join(RECIPES)}")
    check_choice("recipe", name, RECIPES, "--recipe")
    return RECIPES[name][1]
