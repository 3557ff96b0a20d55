"""The two losses of SplitMask: cross-entropy over token ids without keeping logits, and InfoNCE."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.training.distributed import is_distributed

CHUNK = 2048
"""Rows whose logits exist at the same time: 2048 x 8192 in float32 are 64 MiB."""


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns `x @ weight.T + bias`, float32 `(R, V)`, of `x` and `weight` in one dtype; the bias is float32.

    It is added after the product and not within it: it begins near -9 (`token_prior`), where bf16 has steps of 0.06,
    and the products are of the size of 0.3.
    """
    return torch.mm(x, weight.T).float().add_(bias)


class _LinearCrossEntropy(torch.autograd.Function):
    """Linear layer and cross-entropy in chunks; the gradients are made in the forward pass, logits are not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            needs_grad = any(ctx.needs_input_grad[:3])
            low_weight = weight.to(x.dtype)
            grad_x = torch.empty_like(x) if needs_grad else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
            grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_grad else None
            loss = torch.zeros((), device=x.device)
            predicted = torch.empty_like(target)
            for start in range(0, x.shape[0], CHUNK):
                rows = slice(start, start + CHUNK)
                logits = _logits(x[rows], low_weight, bias)
                predicted[rows] = logits.argmax(dim=1)
                log_norm = logits.logsumexp(dim=1, keepdim=True)
                loss += (log_norm.squeeze(1) - logits.gather(1, target[rows, None]).squeeze(1)).sum()
                if grad_x is None or grad_weight is None or grad_bias is None:
                    continue
                grad = logits.sub_(log_norm).exp_()  # softmax, in place
                grad[torch.arange(len(grad), device=x.device), target[rows]] -= 1
                grad /= x.shape[0]
                grad_bias += grad.sum(dim=0)
                grad = grad.to(x.dtype)
                torch.mm(grad, low_weight, out=grad_x[rows])
                if x.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, x[rows])
                else:
                    grad_weight += grad.T @ x[rows]
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        ctx.mark_non_differentiable(predicted)
        return loss / x.shape[0], predicted

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        return grad_x * grad_loss.to(grad_x.dtype), grad_weight * grad_loss, grad_bias * grad_loss, None


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean cross-entropy of `x @ weight.T + bias`, and its argmax for each row.

    Equal to `F.cross_entropy(F.linear(x, weight, bias), target)`, but only `CHUNK` rows of logits exist at a time and
    nothing is computed twice. torch's own `linear_cross_entropy` would need the product again for the accuracy.

    Args:
        x: `(R, C)`; under autocast its products are computed in autocast's dtype, all else in float32.
        weight: `(V, C)`.
        bias: `(V,)`.
        target: int64 `(R,)` in `[0, V)`.

    Returns:
        0-dim float32 loss and int64 `(R,)` predictions.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    loss, predicted = _LinearCrossEntropy.apply(x, weight, bias, target)
    return loss, predicted


def token_accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Returns the share of equal token ids, 0-dim float32; both int64 `(R,)`."""
    return (predictions == targets).sum() / targets.numel()


class TokenHead(nn.Linear):
    """The linear layer from the tokens of hidden patches to the logits of their token ids.

    Args:
        embed_dim: C.
        vocab_size: V.
        prior: `(V,)` of `token_prior`, the bias that it begins with; zeros without.
    """

    def __init__(self, embed_dim: int, vocab_size: int, prior: Tensor | None = None) -> None:
        super().__init__(embed_dim, vocab_size)
        nn.init.trunc_normal_(self.weight, std=0.02)
        with torch.no_grad():
            self.bias.copy_(torch.zeros(vocab_size) if prior is None else prior)

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the 0-dim loss and the predictions int64 `(R,)` for `(R, C)` and int64 `(R,)`."""
        return linear_cross_entropy(x, self.weight, self.bias, target)


class _AllGather(torch.autograd.Function):
    """Rows of all ranks; the gradient of a row is the sum of what all ranks have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_grad(x: Tensor) -> Tensor:
    """Returns the rows of all ranks, `(B, C) -> (world * B, C)`; gradients flow back to the rank they came from."""
    if not is_distributed():
        return x
    gathered: Tensor = _AllGather.apply(x.contiguous())
    return gathered


def info_nce(x_a: Tensor, x_b: Tensor, temperature: float = 0.2) -> Tensor:
    """Returns the symmetric InfoNCE loss between the two descriptors of each image (SplitMask Sec. 4).

    `L(x_a) = -log(exp(x_a.x_b / tau) / sum_{y in {x_b} u N} exp(x_a.y / tau))`. Ours, where the paper is silent:
    descriptors are L2-normalised; N holds the other branch's descriptors of the other images of the global batch,
    gathered with gradient; both directions are averaged. In float32 under autocast too: the cosines of descriptors that
    have nearly collapsed differ by less than bf16 can tell apart.

    Args:
        x_a: `(B, C)`, this rank's.
        x_b: `(B, C)`, of the same images.
        temperature: tau.

    Returns:
        0-dim mean over this rank's images; the mean over ranks is the loss of the global batch.
    """
    with torch.autocast(x_a.device.type, enabled=False):
        x_a, x_b = F.normalize(x_a.float(), dim=1), F.normalize(x_b.float(), dim=1)
        all_a, all_b = gather_with_grad(x_a), gather_with_grad(x_b)
        rank = dist.get_rank() if all_a.shape[0] != x_a.shape[0] else 0
        target = torch.arange(x_a.shape[0], device=x_a.device) + rank * x_a.shape[0]
        loss_a = F.cross_entropy(x_a @ all_b.T / temperature, target)
        loss_b = F.cross_entropy(x_b @ all_a.T / temperature, target)
        return (loss_a + loss_b) / 2
