"""Images as a classifier sees them in training: random crops, RandAugment or colours."""

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from pretrain.data.augment import PretrainAugment, color_jitter, to_tensor
from pretrain.training.global_generators import global_generators
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN
from tools.classification.recipes import ClsRecipe


class TrainAugment:
    """Turns an image into a training crop: `(PIL image, generator) -> uint8 (3, img_size, img_size)`, RGB.

    RandomResizedCrop and flip as in pre-training, then timm's RandAugment ("increasing" operations, as DeiT and BEiT
    run it: `rand-mM-mstdS-inc1`), then colour jitter (brightness, contrast, saturation) where the recipe `jitters`.
    """

    def __init__(self, recipe: ClsRecipe) -> None:
        self.crop = PretrainAugment(recipe.img_size, scale=(recipe.crop_scale, 1.0), flip=recipe.flip)
        self.color_jitter = recipe.color_jitter if recipe.jitters else 0.0
        self.randaugment = None
        if recipe.randaugment > 0:
            self.randaugment = rand_augment_transform(
                f"rand-m{recipe.randaugment:g}-mstd{recipe.randaugment_std:g}-inc1",
                {
                    "translate_const": int(recipe.img_size * 0.45),  # timm's own share
                    "img_mean": tuple(min(255, round(255 * mean)) for mean in IMAGENET_MEAN),
                    "interpolation": Image.Resampling.BICUBIC,
                },
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        crop = self.crop.picture(image, rng)
        if self.randaugment is not None:
            with global_generators(int(rng.integers(2**32))):
                crop = self.randaugment(crop)
        if self.color_jitter > 0:
            crop = color_jitter(crop, rng, self.color_jitter)
        return to_tensor(crop)
