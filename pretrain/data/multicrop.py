"""DINO's crops: two large and several small ones of an image, each with colours changed (Caron et al. 2021, App. A)."""

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from pretrain.data.augment import JITTER, PretrainAugment, to_tensor

LOCAL_SIDE = 96 / 224
"""Side of a small crop over that of a large one."""


class MultiCrop:
    """Makes items with `large` uint8 `(2, 3, S, S)` and `small` uint8 `(L, 3, s, s)`, as DINO's published code does.

    Large crops cover a share of the area from `scale` to 1, small ones from 0.05 to `scale`. Each is flipped (0.5), its
    colours jittered (0.8: brightness and contrast 0.4, saturation 0.2, hue 0.1, in random order) or turned gray (0.2)
    and blurred (radius 0.1 to 2 pixels; always, 0.1 and 0.5 for the first, the second and the small ones); the second
    is solarised (0.2).

    Args:
        img_size: side of the large crops in pixels.
        scale: border between small and large crops, a share of the image's area.
        num_local: small crops.
        patch_size: of the encoder; see `local_size`.
    """

    def __init__(self, img_size: int, scale: float, num_local: int, patch_size: int) -> None:
        self.num_local = num_local
        self.local_size = local_size(img_size, patch_size)
        self.large = PretrainAugment(img_size, scale=(scale, 1.0))
        self.small = PretrainAugment(self.local_size, scale=(min(0.05, scale), scale))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        large = [
            to_tensor(change_colours(self.large.picture(image, rng), rng, blur, solarise))
            for blur, solarise in ((1.0, 0.0), (0.1, 0.2))
        ]
        small = [
            to_tensor(change_colours(self.small.picture(image, rng), rng, 0.5, 0.0)) for _ in range(self.num_local)
        ]
        empty = torch.empty(0, 3, self.local_size, self.local_size, dtype=torch.uint8)
        return {"large": torch.stack(large), "small": torch.stack(small) if small else empty}


def change_colours(image: Image.Image, rng: np.random.Generator, blur: float, solarise: float) -> Image.Image:
    """Returns an RGB image with its colours changed.

    Args:
        image: RGB.
        rng: all is drawn whether it is used or not, so that what follows does not depend on it.
        blur: probability of Gaussian blur.
        solarise: probability of solarisation.
    """
    jitter, gray, blurred, solarised = (rng.random(4) < (0.8, 0.2, blur, solarise)).tolist()
    order = rng.permutation(4)
    factors = 1 + rng.uniform(-1, 1, 3) * (0.4, 0.4, 0.2)
    hue, radius = rng.uniform(-0.1, 0.1), rng.uniform(0.1, 2.0)
    if jitter:
        for change in order:
            if change == 3:
                image = shift_hue(image, hue)
            else:
                image = JITTER[change](image).enhance(float(factors[change]))
    if gray:
        image = image.convert("L").convert("RGB")
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if solarised:
        image = ImageOps.solarize(image, threshold=128)
    return image


def shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Returns an RGB image with its hue turned by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(share * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def local_size(img_size: int, patch_size: int) -> int:
    """Returns the side of small crops beside large ones of `img_size`: 96 of 224, in whole patches."""
    return max(1, round(LOCAL_SIDE * img_size / patch_size)) * patch_size
