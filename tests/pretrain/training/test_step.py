"""One step of training by hand: forward, backward, both ways to clip, the update, its seed."""

import math

import pytest
import torch

from pretrain.training.distributed import make_fabric
from pretrain.training.step import clip_gradients, step_seed, train_step
from tests.helpers import splitmask
from tests.helpers.toy import Toy, batches


def test_a_step_is_forward_backward_clip_and_the_optimizer():
    """Against the same written out, with two micro-batches and a clip that bites."""
    fabric, ours, theirs = make_fabric(), Toy(), Toy()
    model, wrapped = fabric.setup(ours, torch.optim.SGD(ours.parameters(), lr=0.5))
    data = list(batches(0))[:2]
    torch.manual_seed(3)
    values = train_step(fabric, model, wrapped, iter(data), accumulate=2, clip_grad=0.2)
    torch.manual_seed(3)
    expected = [theirs(batch)["loss"] for batch in data]
    (sum(expected) / 2).backward()
    norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()
    assert norm > 0.2
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter -= 0.5 * parameter.grad * 0.2 / (norm + 1e-6)
    torch.testing.assert_close(values["loss"], torch.stack(expected).mean().detach())
    torch.testing.assert_close(values["grad_norm"], norm)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert a.grad is None


def test_a_step_that_is_not_approved_leaves_the_weights():
    fabric, method = make_fabric(), Toy()
    model, wrapped = fabric.setup(method, torch.optim.SGD(method.parameters(), lr=0.5))
    before = method.layer.weight.detach().clone()

    def refuse(loss, grad_norm):
        assert loss.dim() == grad_norm.dim() == 0
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        train_step(fabric, model, wrapped, batches(0), approve=refuse)
    assert torch.equal(method.layer.weight, before)


def test_gradients_are_clipped_one_parameter_at_a_time():
    """Against plain numbers: of norms 5, 1 and 0.5 only those above 2 shrink, and the norm of all is told."""
    gradients = [[3.0, 4.0], [0.6, 0.8], [0.3, 0.4], None, [0.0]]
    parameters = [torch.nn.Parameter(torch.zeros(len(g or [0]))) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    norm = clip_gradients(parameters, 2.0, per_parameter=True)
    assert norm.item() == pytest.approx(math.sqrt(25 + 1 + 0.25))
    found = [None if p.grad is None else p.grad.tolist() for p in parameters]
    expected = [[1.2, 1.6], [0.6, 0.8], [0.3, 0.4], None, [0.0]]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs))


def test_a_step_that_clips_one_parameter_at_a_time():
    """Weight and bias by themselves: another direction than that of both clipped together."""
    fabric, ours, theirs = make_fabric(), Toy(), Toy()
    model, wrapped = fabric.setup(ours, torch.optim.SGD(ours.parameters(), lr=0.5))
    torch.manual_seed(3)
    values = train_step(fabric, model, wrapped, batches(0), clip_grad=0.2, clip_per_parameter=True)
    torch.manual_seed(3)
    theirs(next(batches(0)))["loss"].backward()
    norms = [p.grad.norm() for p in theirs.parameters()]
    assert len(norms) == 2 and min(norms) > 0.2
    torch.testing.assert_close(values["grad_norm"], torch.stack(norms).norm())
    for mine, parameter, norm in zip(ours.parameters(), theirs.parameters(), norms, strict=True):
        torch.testing.assert_close(mine, parameter - 0.5 * parameter.grad * 0.2 / (norm + 1e-6))


def test_the_seed_of_a_step_depends_on_all_three():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27 and max(seeds) < 2**63


def halves(batch, parts):
    """The micro-batches of a batch, as a rank gets them."""
    return [
        dict(zip(batch, values, strict=True)) for values in zip(*(v.chunk(parts) for v in batch.values()), strict=True)
    ]


def split_step(accumulate, cached, weights=(1.0, 1.0), precision="32", jitter=0.0):
    """Values and gradients of one step of SplitMask on 8 images."""
    fabric = make_fabric(precision)
    method = splitmask.build(inpaint_weight=weights[0], match_weight=weights[1], branch_jitter=jitter)
    model, wrapped = fabric.setup(method, torch.optim.SGD(method.parameters(), lr=0.0))
    gradients = {}

    def keep(loss, grad_norm):
        gradients.update({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})

    data = iter(halves(splitmask.make_batch(8), accumulate))
    torch.manual_seed(5)
    values = train_step(
        fabric, model, wrapped, data, accumulate=accumulate, approve=keep, grad_cache=method if cached else None
    )
    return values, gradients


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0)], ids=["both", "match"])
def test_gradient_caching_is_one_batch(accumulate, weights):
    whole, expected = split_step(1, False, weights)
    values, gradients = split_step(accumulate, True, weights)
    for name, value in whole.items():
        if name != "token_accuracy":
            torch.testing.assert_close(values[name], value, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys() and max(g.abs().max() for g in expected.values()) > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_plain_accumulation_is_not():
    whole, expected = split_step(1, False)
    values, gradients = split_step(4, False)
    assert abs(values["loss_match"] - whole["loss_match"]) > 0.1  # 1 negative an image and not 7
    assert max((gradients[n] - g).abs().max() / g.abs().max() for n, g in expected.items()) > 0.05


def test_what_is_random_is_drawn_twice_alike(monkeypatch):
    """Descriptors of the pass without gradients are those of the pass with them, with colours that are drawn."""
    seen = []
    real = splitmask.SplitMask._decoded

    def decoded(self, batch):
        found = real(self, batch)
        seen.append(found[2].detach().mean(dim=1))
        return found

    monkeypatch.setattr(splitmask.SplitMask, "_decoded", decoded)
    split_step(4, True, jitter=0.5)
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


def test_gradient_caching_under_bf16_is_as_exact_as_bf16():
    whole, expected = split_step(1, False, precision="bf16")
    values, gradients = split_step(4, True, precision="bf16")
    assert abs(values["loss"] - whole["loss"]) < 1e-3 * whole["loss"]
    _, exact = split_step(1, False)

    def error(found: dict, true: dict) -> float:
        return max(float((found[name] - true[name]).norm() / (true[name].norm() + 5e-5)) for name in true)

    assert error(gradients, expected) < 2 * error(expected, exact) < 0.1
