"""The BEiT baseline: what masked patches reveal, and its loss against a naive statement."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.methods.beit import Beit
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
from tests.helpers.methods import ten_losses


def build(**kwargs):
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2, **kwargs)
    method = Beit(encoder, Tokenizer(random_projection(32, 768, 0)))
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return method


def make_batch():
    rng = np.random.default_rng(1)
    masked = np.stack([np.sort(rng.permutation(16)[:6]) for _ in range(3)])
    images = rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    return {"image": torch.from_numpy(images), "ids_masked": torch.from_numpy(masked)}


@pytest.mark.parametrize("extra", [{}, {"use_class_token": True, "num_registers": 1}, {"positions": "none"}])
def test_loss_equals_a_naive_statement(extra):
    method, batch = build(**extra), make_batch()
    values = method(batch)
    image = method.normalize(batch["image"])
    encoder, losses, right = method.encoder, [], []
    for i in range(3):
        tokens = encoder.patch_embed(image[i : i + 1])[0].clone()
        tokens[batch["ids_masked"][i]] = method.mask_token[0, 0]
        prefix = [token[0] for token in (encoder.cls_token, encoder.reg_token) if token is not None]
        x = torch.cat([*prefix, tokens])
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed[0]
        x = x[None]
        for block in encoder.blocks:
            x = block(x)
        x = encoder.norm(x)[0, encoder.num_prefix_tokens :]
        patches = image[i].reshape(3, 4, 16, 4, 16).permute(1, 3, 0, 2, 4).reshape(16, 768)
        for patch in batch["ids_masked"][i].tolist():
            logits = method.head(x[patch])
            word = (patches[patch] @ method.tokenizer.words.T).argmax()
            losses.append(F.cross_entropy(logits, word))
            right.append(logits.argmax() == word)
    assert len(losses) == 18
    torch.testing.assert_close(values["loss"], torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["token_accuracy"], torch.stack(right).float().mean())
    assert values["loss_inpaint"] is values["loss"] and "loss_match" not in values


def test_masked_pixels_are_not_seen():
    method, batch = build(), make_batch()
    image = method.normalize(batch["image"])
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, batch["ids_masked"], True)
    pixels = hidden.reshape(3, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    before = method.encode(image, batch["ids_masked"])
    noise = torch.randn_like(image)
    assert torch.equal(before, method.encode(torch.where(pixels, noise, image), batch["ids_masked"]))
    assert not torch.allclose(before, method.encode(torch.where(pixels, image, noise), batch["ids_masked"]))


def test_every_parameter_gets_a_gradient():
    method = build(use_class_token=True)
    method(make_batch())["loss"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_the_encoder_does_not_hold_the_mask_token():
    assert not any("mask_token" in name for name in build().encoder.state_dict())


def test_golden_ten_steps():
    """Numbers come from NumPy: torch's generators differ between its versions."""
    rng, method, batch = np.random.default_rng(0), build(), make_batch()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=0.1, size=tuple(parameter.shape))))
    losses = ten_losses(method, batch)
    assert losses == pytest.approx(GOLDEN, rel=2e-3)


GOLDEN = [3.4682, 3.4316, 3.3992, 3.3696, 3.3419, 3.3158, 3.2911, 3.2674, 3.2443, 3.2211]
