"""From the bytes of a crop to what an encoder reads, and back."""

import torch
from torch import Tensor, nn

from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD


class PixelNorm(nn.Module):
    """uint8 images `(B, 3, H, W)` to ImageNet-normalised float32. It has no state."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Returns `(image / 255 - mean) / std`."""
        return (image.float() / 255 - self.mean) / self.std

    def undo(self, image: Tensor) -> Tensor:
        """Returns float32 pixels in [0, 1] of a normalised image."""
        return image.float() * self.std + self.mean
