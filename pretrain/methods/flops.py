"""Floating-point operations of one SplitMask step, counted part by part."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.methods.splitmask import SplitMask, complement
from splitmask_backbones.vit import gather_tokens


@torch.no_grad()
def flops_per_image(method: SplitMask, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns operations per image of a training step by part: encoder, decoder, head, tokenizer.

    A multiply-add counts as two. Matrix products and attention are counted in the forward pass by torch's counter;
    the backward pass of encoder, decoder and head takes twice that. The tokenizer has no backward pass.

    Args:
        method: in any mode; nothing of it changes.
        batch: as `SplitMask.forward` takes it.
    """
    num_images = len(batch["image"])
    image = method.normalize(batch["image"])
    ids = torch.cat([batch["ids_a"], batch["ids_b"]])
    counts: dict[str, float] = {}

    def count(name: str, factor: int, part: object) -> object:
        # As plain matrix products: not every version of torch counts the fused attention of every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = part()  # type: ignore[operator]
        counts[name] = factor * counter.get_total_flops() / num_images
        return result

    tokens = count("encoder", 3, lambda: method.encoder(torch.cat([image, image]), ids))
    decoded = count("decoder", 3, lambda: method.decoder(tokens, ids))
    if method.head is not None and method.tokenizer is not None:
        hidden = gather_tokens(decoded, complement(ids, decoded.shape[1]))  # type: ignore[attr-defined, arg-type]
        count("head", 3, lambda: method.head(hidden))  # type: ignore[misc]
        count("tokenizer", 1, lambda: method.tokenizer.tokens_of(image, method.encoder.patch_size))  # type: ignore[union-attr]
    return counts
