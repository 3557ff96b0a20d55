"""The method: what each branch may see, what it predicts, and its two losses against a naive statement."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.methods.losses import info_nce
from pretrain.methods.splitmask import SplitMask, complement
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
from splitmask_backbones.vit import patchify
from tests.helpers.methods import ten_losses
from tests.helpers.splitmask import build, make_batch


def test_complement():
    ids = torch.tensor([[1, 3], [0, 2]])
    assert complement(ids, 5).tolist() == [[0, 2, 4], [1, 3, 4]]


@pytest.mark.parametrize("seen", [8, 4])
def test_losses_equal_a_naive_statement(seen):
    method, batch = build(), make_batch(seen=seen)
    values = method(batch)
    image = method.normalize(batch["image"])
    token_ids = method.tokenizer(patchify(image, 16))
    losses, right, descriptors = [], [], {"a": [], "b": []}
    for branch in "ab":
        for i in range(3):
            ids = batch[f"ids_{branch}"][i]
            tokens = method.encoder(image[i : i + 1], ids[None])[0]
            full = method.decoder.mask_token[0].expand(16, -1).clone()
            full[ids] = tokens
            x = (full + method.decoder.pos_embed[0])[None]
            for block in method.decoder.blocks:
                x = block(x)
            x = method.decoder.norm(x)[0]
            descriptors[branch].append(x.mean(0))
            for patch in range(16):
                if patch not in ids.tolist():
                    logits = method.head(x[patch])
                    losses.append(F.cross_entropy(logits, token_ids[i, patch]))
                    right.append(logits.argmax() == token_ids[i, patch])
    assert len(losses) == 2 * 3 * (16 - seen)
    torch.testing.assert_close(values["loss_inpaint"], torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["token_accuracy"], torch.stack(right).float().mean())
    match = info_nce(torch.stack(descriptors["a"]), torch.stack(descriptors["b"]), 0.2)
    torch.testing.assert_close(values["loss_match"], match, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["loss"], values["loss_inpaint"] + values["loss_match"])


def test_branches_are_jittered_in_training_only_and_token_ids_are_not():
    method, batch = build(branch_jitter=0.3), make_batch()
    image = method.normalize(batch["image"])
    seen = []
    method.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method(batch)
    a, b = seen.pop().chunk(2)
    assert not torch.allclose(a, image, atol=0.01) and not torch.allclose(a, b, atol=0.01)
    token_ids = method.tokenizer(patchify(image, 16))
    hidden = complement(torch.cat([batch["ids_a"], batch["ids_b"]]), 16)
    with torch.no_grad():
        assert torch.equal(method.observe(batch)["targets"], token_ids.repeat(2, 1).gather(1, hidden).flatten())
    method.head.weight.data.zero_()  # the loss is then that of the bias: the token ids decide it, and nothing else
    expected = F.cross_entropy(method.head.bias.expand(48, -1), token_ids.repeat(2, 1).gather(1, hidden).flatten())
    torch.testing.assert_close(method(batch)["loss_inpaint"], expected)
    method.eval()
    seen.clear()
    method(batch)
    assert torch.equal(seen.pop(), torch.cat([image, image]))
    alone = build(branch_jitter=0.3, match_weight=0.0)
    torch.testing.assert_close(alone(batch)["loss"], build(match_weight=0.0)(batch)["loss"], rtol=0, atol=0)


def test_a_branch_does_not_see_the_other_half():
    """Changing the pixels of B changes nothing in what branch A predicts, only the token ids it is compared with."""
    method, batch = build(), make_batch()
    image = method.normalize(batch["image"])
    before = method.decode(image, batch["ids_a"])
    hidden = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, batch["ids_b"], True)
    pixels = hidden.reshape(3, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    after = method.decode(torch.where(pixels, torch.randn_like(image), image), batch["ids_a"])
    assert torch.equal(before, after)
    assert not torch.allclose(before, method.decode(torch.where(pixels, image, 0.0), batch["ids_a"]))


@pytest.mark.parametrize("switch", [{}, {"inpaint_weight": 0.0}, {"match_weight": 0.0}])
def test_every_parameter_gets_a_gradient(switch):
    method = build(**switch)
    method(make_batch())["loss"].backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_switches():
    assert set(build(match_weight=0.0)(make_batch())) == {"loss", "loss_inpaint", "token_accuracy"}
    assert set(build(inpaint_weight=0.0)(make_batch())) == {"loss", "loss_match"}
    values = build(match_weight=0.5)(make_batch())
    torch.testing.assert_close(values["loss"], values["loss_inpaint"] + 0.5 * values["loss_match"])
    with pytest.raises(ValueError, match="nothing to learn"):
        build(match_weight=0.0, inpaint_weight=0.0)


def test_no_logits_are_kept():
    """The largest tensor saved for the backward pass is far smaller than the logits."""
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=1, num_heads=2)
    method = SplitMask(encoder, Tokenizer(random_projection(4096, 768, 0)))
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        method(make_batch(batch=64))
    assert max(sizes) < 64 * 16 * 4096 / 4


def test_golden_ten_steps():
    """The loss of ten fixed steps falls, and stays what it was when it was written down.

    Numbers come from NumPy: torch's generators differ between its versions.
    """
    rng = np.random.default_rng(0)
    method = build()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=0.1, size=tuple(parameter.shape))))
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(16), (3, 1)), axis=1))
    batch = {
        "image": torch.from_numpy(rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)),
        "ids_a": order[:, :8],
        "ids_b": order[:, 8:],
    }
    losses = ten_losses(method, batch)
    assert losses[-1] < losses[0] - 0.5
    assert losses == pytest.approx(GOLDEN, rel=2e-3)


GOLDEN = [4.5852, 4.5639, 4.5418, 4.5155, 4.4815, 4.4253, 4.3136, 4.1319, 3.9646, 3.8773]


def test_weights_begin_as_the_paper_family_has_them():
    """Truncated normals of std 0.02 (BEiT, MAE), biases of zero; larger ones drown the encoder's features.

    The decoder's positions are as large as what they are added to.
    """
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=96, depth=1, num_heads=2)
    prior = torch.randn(64)
    method = SplitMask(encoder, Tokenizer(random_projection(64, 768, 0)), prior=prior)
    linear = [module for module in method.decoder.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 2 * 4  # qkv, proj, fc1 and fc2 of each of two blocks
    for weight in (module.weight for module in (*linear, method.head)):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(weight.mean().item()) < 0.002
    rows = [[y, x] for y in range(4) for x in range(4)]
    waves = [10000 ** (-k / 24) for k in range(24)]
    table = [[wave(n * w) for n in (x, y) for wave in (math.sin, math.cos) for w in waves] for y, x in rows]
    torch.testing.assert_close(method.decoder.pos_embed.detach(), torch.tensor([table]))
    assert method.decoder.pos_embed.requires_grad
    assert method.decoder.pos_embed.square().mean().sqrt().item() == pytest.approx(0.5**0.5)
    assert method.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.4)  # 96 numbers
    assert all(module.bias.abs().max() == 0 for module in linear)
    assert torch.equal(method.head.bias, prior)
