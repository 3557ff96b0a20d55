"""The losses against plain statements of their definitions."""

import pytest
import torch
import torch.nn.functional as F

from pretrain.methods import losses
from pretrain.methods.losses import info_nce, linear_cross_entropy


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_linear_cross_entropy_equals_logits_at_once(rows, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 16)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s, dtype=torch.float32, requires_grad=True) for s in ((rows, 12), (50, 12), (50,)))
    target = torch.randint(50, (rows,))
    loss, predicted = linear_cross_entropy(x, weight, bias, target)
    (3 * loss).backward()
    ours = [p.grad.clone() for p in (x, weight, bias)]
    for p in (x, weight, bias):
        p.grad = None
    logits = F.linear(x, weight, bias)
    expected = F.cross_entropy(logits, target)
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    assert torch.equal(predicted, logits.argmax(1))
    for a, b in zip(ours, (x, weight, bias), strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-6, rtol=1e-4)


def test_linear_cross_entropy_under_bf16_autocast():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 12, requires_grad=True), torch.randn(9, 12, requires_grad=True), torch.zeros(9)
    bias.requires_grad_()
    target = torch.randint(9, (40,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(x, weight, bias, target)
    loss.backward()
    expected = F.cross_entropy(F.linear(x, weight, bias), target)
    (grad,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(weight.grad, grad, atol=0.01, rtol=0.1)
    assert weight.grad.dtype == torch.float32


def head_with_a_prior(rows, vocab_size=8192, dim=192):
    """Normalised tokens, weights of std 0.02, the log of skewed shares of the token ids (about -9), targets."""
    generator = torch.Generator().manual_seed(0)
    x = F.layer_norm(torch.randn(rows, dim, generator=generator), (dim,))
    weight = 0.02 * torch.randn(vocab_size, dim, generator=generator)
    counts = 1 + (3 * torch.empty(vocab_size).exponential_(generator=generator)).round()
    bias = (counts / counts.sum()).log()
    return x, weight, bias, torch.multinomial(counts, rows, replacement=True, generator=generator)


def test_a_prior_is_not_rounded_under_bf16_autocast():
    """The logits of one row, read off the gradient of the bias (softmax - one-hot): RMS error 0.024 if rounded."""
    x, weight, bias, target = head_with_a_prior(1)
    assert bias.median() < -8
    bias.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(x, weight, bias, target)
    loss.backward()
    expected = F.linear(x.double(), weight.double(), bias.double())[0].log_softmax(0)
    others = torch.arange(len(bias)) != target
    error = bias.grad.double()[others].log() - expected[others]
    assert error.square().mean().sqrt() < 0.0015


def test_the_gradient_of_a_prior_under_bf16_autocast():
    """Relative error 0.5 % if the bias is rounded."""
    x, weight, bias, target = head_with_a_prior(512)
    exact = bias.double().requires_grad_()
    expected = F.cross_entropy(F.linear(x.double(), weight.double(), exact), target)
    expected.backward()
    bias.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(x, weight, bias, target)
    loss.backward()
    assert (bias.grad - exact.grad).norm() < 1e-4 * exact.grad.norm()
    assert abs(loss.item() - expected.item()) < 1e-4


def test_no_grad_leaves_the_logits_as_they_are(monkeypatch):
    """Gradients are made in their place."""
    made = []
    monkeypatch.setattr(losses, "_logits", lambda *args, real=losses._logits: made.append(real(*args)) or made[-1])
    x, weight, bias = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)
    with torch.no_grad():
        linear_cross_entropy(x, weight, bias, torch.zeros(4).long())
    torch.testing.assert_close(made, [F.linear(x, weight, bias)])


def test_info_nce_by_hand():
    torch.manual_seed(0)
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    na, nb = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    total = 0.0
    for x, y in ((na, nb), (nb, na)):
        for i in range(3):
            similarities = torch.stack([(x[i] @ y[j] / 0.2).exp() for j in range(3)])
            total = total - (similarities[i] / similarities.sum()).log()
    torch.testing.assert_close(info_nce(a, b, 0.2), total / 6)


def test_info_nce_of_equal_and_of_random_descriptors():
    x = torch.eye(8)
    assert info_nce(x, x, 0.05) < 1e-6
    assert info_nce(x, x.roll(1, 0), 0.05) > 10


def test_info_nce_of_nearly_collapsed_descriptors_under_bf16_autocast():
    """Descriptors that differ by 3 %: relative error of their gradient 5 % if the cosines are rounded to bf16."""
    torch.manual_seed(0)
    x_a = torch.randn(1, 192) + 0.03 * torch.randn(64, 192)
    x_b = x_a + 0.015 * torch.randn(64, 192)
    exact_a, exact_b = x_a.double().requires_grad_(), x_b.double().requires_grad_()
    cosine = F.cosine_similarity(exact_a[:, None], exact_b[None], dim=2) / 0.2
    (-(cosine.log_softmax(1).diag().mean() + cosine.log_softmax(0).diag().mean()) / 2).backward()
    x_a.requires_grad_()
    x_b.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(x_a, x_b, 0.2)
    loss.backward()
    for ours, exact in ((x_a, exact_a), (x_b, exact_b)):
        assert (ours.grad - exact.grad).norm() < 1e-4 * exact.grad.norm()
