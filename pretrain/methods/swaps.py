"""What is exchanged within a crop to see whether a method looks at it: nothing is added, and only places change."""

import torch
import torch.nn.functional as F
from torch import Tensor

from splitmask_backbones.vit import gather_tokens, patchify


def fixed_cycle(length: int, device: torch.device | str | None = None) -> Tensor:
    """Returns a permutation of `length` places in which none stays: int64 `(length,)`, the same whenever called.

    One random cycle through all of them: whoever moved to the next place would often meet a patch that looks alike.
    """
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(order).scatter_(0, order, order.roll(1)).to(device)


def swap_contents(images: Tensor, ids: Tensor, patch_size: int) -> Tensor:
    """Returns images whose patches in `ids` are in each other's places, by `fixed_cycle`; all others stay.

    Args:
        images: `(B, 3, H, W)`, sides multiples of `patch_size`.
        ids: int64 `(B, K)`, row-major patch indices.
        patch_size: pixels.
    """
    patches = patchify(images, patch_size)  # (B, N, 3 * p * p)
    moved = gather_tokens(patches, ids[:, fixed_cycle(ids.shape[1], ids.device)])
    patches = patches.scatter(1, ids[..., None].expand_as(moved), moved)
    return F.fold(patches.transpose(1, 2), images.shape[2:], kernel_size=patch_size, stride=patch_size)
