"""The counted operations against the closed form."""

import pytest
import torch

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
from tools.benchmarks.pretrain import flops_per_image


def test_parts_equal_the_closed_form():
    dim, patches, words, seen = 48, 16, 64, 8
    encoder = VisionTransformer(img_size=64, embed_dim=dim, depth=3, num_heads=3)
    method = SplitMask(encoder, Tokenizer(random_projection(words, 768, 0)), decoder_depth=2)
    order = torch.stack([torch.randperm(patches) for _ in range(5)])
    batch = {
        "image": torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8),
        "ids_a": order[:, :seen],
        "ids_b": order[:, seen:],
    }

    def block(tokens):
        return 2 * tokens * 12 * dim**2 + 2 * 2 * tokens**2 * dim

    expected = {
        "encoder": 3 * 2 * (3 * block(seen) + 2 * seen * 768 * dim),
        "decoder": 3 * 2 * 2 * block(patches),
        "head": 3 * 2 * patches * dim * words,
        "tokenizer": 2 * patches * 768 * words,
    }
    assert flops_per_image(method, batch) == pytest.approx(expected)
