"""One optimizer step: forward, backward, clip, update. Reads and writes no file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the torch seed of one step: with it, no random state needs to be stored for an exact resume."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "big")


class GradCached(Protocol):
    """What gradient caching asks of a method, see `pretrain.methods.base.Method`."""

    def represent(self, batch: Any) -> Tensor:
        """Returns what the loss compares across the images of a step."""

    def cache_gradients(self, representations: list[Tensor]) -> list[Any]:
        """Returns what `model` is called with beside each micro-batch."""


def clip_gradients(parameters: list[nn.Parameter], max_norm: float, per_parameter: bool = False) -> Tensor:
    """Clips gradients in place; returns the norm of all of them together before that, 0-dim float32.

    Args:
        parameters: those without a gradient are left out.
        max_norm: largest norm; infinite for any.
        per_parameter: of each parameter's gradient by itself, as in DINO's code, and not of all of them as one vector.
    """
    if not per_parameter:
        return clip_grad_norm_(parameters, max_norm)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` has it
    torch._foreach_mul_(gradients, list(factors.unbind()))
    return torch.linalg.vector_norm(norms)


def train_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    *,
    accumulate: int = 1,
    clip_grad: float | None = None,
    clip_per_parameter: bool = False,
    approve: Callable[[Tensor, Tensor], None] | None = None,
    grad_cache: GradCached | None = None,
) -> dict[str, Tensor]:
    """Makes one optimizer step; returns the mean of the model's named values and `grad_norm`: 0-dim, float32.

    Reads and writes nothing but weights, gradients and the optimizer's state.

    Args:
        fabric: that `model` and `optimizer` were set up with.
        model: `model(batch)` returns named 0-dim tensors, "loss" among them.
        optimizer: of the model's parameters.
        batches: micro-batches on the device; `accumulate` of them are taken.
        accumulate: micro-batches per step.
        clip_grad: largest gradient norm, or None.
        clip_per_parameter: whether that is the norm of each parameter's gradient; `grad_norm` is that of all.
        approve: called with loss and gradient norm before the weights move; what it raises leaves them as they were.
        grad_cache: `model` as it was before Fabric wrapped it, whose loss compares the images of the step: gradients
            are those of one batch (gradient caching), at the price of one more forward pass.
    """
    values: dict[str, Tensor] = {}
    parts: Iterator[tuple[Any, ...]] = ((next(batches),) for _ in range(accumulate))
    seed = torch.initial_seed()
    if grad_cache is not None:
        parts = iter(_with_gradients(fabric, grad_cache, [next(batches) for _ in range(accumulate)], seed))
    for micro, part in enumerate(parts):
        if grad_cache is not None:
            torch.manual_seed(seed + micro)
        with fabric.no_backward_sync(model, enabled=micro < accumulate - 1):  # type: ignore[arg-type]
            found = model(*part)
            fabric.backward(found["loss"] / accumulate)
        for name, value in found.items():
            values[name] = values.get(name, 0.0) + value.detach().float() / accumulate
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values["grad_norm"] = clip_gradients(parameters, clip_grad or math.inf, clip_per_parameter)
    if approve is not None:
        approve(values["loss"], values["grad_norm"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values


@torch.no_grad()
def _with_gradients(fabric: Fabric, method: GradCached, batches: list[Any], seed: int) -> list[tuple[Any, Any]]:
    """Returns the micro-batches, each with what it has to know of the others (Gao et al. 2021, GradCache, Sec. 3.2).

    Descriptors of all of them first, without a graph; the loss that compares them, and its gradients by them. What is
    random in a forward pass is drawn from `seed` + its number, and so again where the gradients are made.
    """
    representations = []
    with fabric.autocast():
        for number, batch in enumerate(batches):
            torch.manual_seed(seed + number)
            representations.append(method.represent(batch))
    return list(zip(batches, method.cache_gradients(representations), strict=True))
