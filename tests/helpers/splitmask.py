"""A tiny SplitMask, and a batch for it."""

import torch

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer


def build(**kwargs):
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2)
    method = SplitMask(encoder, Tokenizer(random_projection(32, 768, 0)), **kwargs)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return method


def make_batch(batch=3, seen=8):
    torch.manual_seed(1)
    order = torch.stack([torch.randperm(16) for _ in range(batch)])
    return {
        "image": torch.randint(256, (batch, 3, 64, 64), dtype=torch.uint8),
        "ids_a": order[:, :seen].sort(1).values,
        "ids_b": order[:, seen : 2 * seen].sort(1).values,
    }
