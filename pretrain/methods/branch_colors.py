"""The colours by which two branches of SplitMask can be matched, and how to take them away."""

import torch
from torch import Tensor

from splitmask_backbones.vit import gather_tokens, patchify

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


def colors(image: Tensor, ids: Tensor, patch_size: int) -> Tensor:
    """Returns quantiles of each channel over the patches that a branch sees: float32 `(B, 3 * len(QUANTILES))`.

    Args:
        image: `(B, 3, H, W)`.
        ids: int64 `(B, K)`, row-major patch indices.
        patch_size: pixels.
    """
    pixels = gather_tokens(patchify(image, patch_size), ids).unflatten(2, (3, -1)).transpose(1, 2).flatten(2).float()
    levels = torch.tensor(QUANTILES, device=image.device)
    # Image by image: torch.quantile refuses more than 16 million values.
    return torch.stack([torch.quantile(channels, levels, dim=1).T.flatten() for channels in pixels])


def jitter_colors(image: Tensor, strength: float) -> Tensor:
    """Returns the images with each channel multiplied and shifted, every image by numbers of its own.

    Colours alone tell most crops of a batch apart (SimCLR, Chen et al. 2020, Sec. 3.1 and Fig. 6), and both branches
    see the same crop. The factor is uniform in `1 - strength .. 1 + strength` for each channel; the shift is the sum of
    one for all channels, uniform in `+-2 strength`, and one for each, in `+-strength`. Ours.

    Args:
        image: `(B, 3, H, W)`, normalised: shifts are in standard deviations of ImageNet's pixels.
        strength: in [0, 1]; 0 changes nothing.
    """

    def uniform(channels: int) -> Tensor:
        return strength * (2 * torch.rand(image.shape[0], channels, 1, 1, device=image.device) - 1)

    return image * (1 + uniform(3)) + uniform(3) + 2 * uniform(1)
