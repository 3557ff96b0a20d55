"""`--cuda-graph`: the step as recorded GPU work that is played again, for models so small that launching dominates.

Two graphs and not one: between them the loop looks whether loss and gradients are finite, and leaves the weights as
they are where not. The looks cost one wait of the host a step, as without graphs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.training.step import clip_gradients
from splitmask_backbones.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WARM_UP_STEPS = 3
"""Steps before the recording: kernels are chosen and compiled, the optimizer's state is made."""

logger = logging.getLogger(__name__)


def check_graph(fabric: Fabric, *, accumulate: int, capturable: bool) -> None:
    """Raises ValueError where a step cannot be recorded.

    Args:
        fabric: device and processes.
        accumulate: micro-batches per step.
        capturable: whether the method's step asks nothing of the host.
    """
    what = "--cuda-graph true"
    if fabric.device.type != "cuda":
        raise UserError(f"{what} needs a GPU, and the run computes on {fabric.device}: omit it")
    if fabric.world_size > 1:
        raise UserError(f"{what} is for one process, and there are {fabric.world_size}: omit it")
    if accumulate > 1:
        raise UserError(f"{what} records a step of one micro-batch: omit it, or --accumulate {accumulate}")
    if not capturable:
        raise UserError(f"{what} goes with the methods splitmask and beit without --end-weight-decay: omit it")


class StaticStep:
    """`train_step` for one micro-batch, with inputs, learning rates, gradients and results at fixed addresses.

    The learning rates of the optimizer's groups become tensors, which the loop fills. On a device without graphs the
    same code runs as it is: the bytes are those of `train_step`.

    Args:
        fabric: that `model` was set up with.
        model: `model(batch)` returns named 0-dim tensors, "loss" among them.
        optimizer: of the model's parameters; on a GPU capturable.
        clip_grad: largest gradient norm, or None.
        clip_per_parameter: whether that is the norm of each parameter's gradient.

    Attributes:
        failed: whether the step could not be recorded.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip_grad: float | None = None,
        clip_per_parameter: bool = False,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer
        self.clip_grad, self.clip_per_parameter = clip_grad, clip_per_parameter
        self.batch: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}
        self.failed = False
        self._gradients: Callable[[], None] = self._make_gradients
        self._update: Callable[[], None] = self._make_update
        on_gpu = fabric.device.type == "cuda"
        for group in optimizer.param_groups:
            # The fused kernel reads float32; elsewhere a tensor has to count as the number that it stands for.
            dtype = torch.float32 if on_gpu else torch.float64
            group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=fabric.device)

    def __call__(
        self, batches: Iterator[dict[str, Tensor]], approve: Callable[[Tensor, Tensor], None] | None = None
    ) -> dict[str, Tensor]:
        """Makes one optimizer step; returns what `train_step` returns, valid until the next step.

        Args:
            batches: on the device; one is taken. All have the same shapes.
            approve: as of `train_step`.
        """
        self._take(next(batches))
        self._gradients()
        if approve is not None:
            approve(self.values["loss"], self.values["grad_norm"])
        self._update()
        return self.values

    def _take(self, batch: dict[str, Tensor]) -> None:
        if not self.batch:
            self.batch = {name: value.clone() for name, value in batch.items()}
            if self.fabric.device.type == "cuda":
                self._record()
        for name, value in batch.items():
            held = self.batch[name]
            assert held.shape == value.shape and held.dtype == value.dtype, f"{name}: {value.shape}, {held.shape}"
            held.copy_(value, non_blocking=True)

    def _make_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)  # in a graph they are made at the same place each time
        found = self.model(self.batch)
        self.fabric.backward(found["loss"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = clip_gradients(parameters, self.clip_grad or math.inf, self.clip_per_parameter)
        self.values = {**{name: value.detach().float() for name, value in found.items()}, "grad_norm": norm}

    def _make_update(self) -> None:
        self.optimizer.step()

    def _record(self) -> None:
        """Records both parts; where that fails, the run goes on as without graphs."""
        seed = torch.initial_seed()
        held = Held(self.model, self.optimizer)
        # A weight's bf16 copy that autocast keeps would be read again after the weight has changed.
        caches = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        current = torch.cuda.current_stream()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._make_gradients()
                    self._make_update()
            torch.cuda.current_stream().wait_stream(stream)
            gradients, update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            # thread_local: what pins batches in a thread of its own goes on meanwhile.
            with torch.cuda.graph(gradients, capture_error_mode="thread_local"):
                self._make_gradients()
            with torch.cuda.graph(update, pool=gradients.pool(), capture_error_mode="thread_local"):
                self._make_update()
            self._gradients, self._update = gradients.replay, update.replay
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self.failed = True
            torch.cuda.synchronize()
            torch.cuda.set_stream(current)  # a recording that cannot be ended leaves its own
            # Up to torch 2.12 the generator is left as if it were being recorded, and would refuse the next number.
            with suppress(RuntimeError):
                torch.cuda.default_generators[self.fabric.device.index or 0].graphsafe_set_state(
                    torch.Generator(self.fabric.device)
                )
            reason = " ".join(str(error).split("\n")[0].split())[:300]
            logger.warning("--cuda-graph: the step cannot be recorded, the run goes on without (%s)", reason)
        finally:
            torch.set_autocast_cache_enabled(caches)
        held.put_back()
        torch.manual_seed(seed)


class Held:
    """Weights and optimizer state as they are, to be put back in place after steps that do not count."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        tensors = [*model.parameters(), *model.buffers(), *self._moments()]
        self.kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self.known = {id(tensor) for tensor in tensors}

    def _moments(self) -> list[Tensor]:
        states = self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Copies all values back; state that was not there yet becomes zero, as it begins."""
        for tensor, value in self.kept:
            tensor.copy_(value)
        for tensor in self._moments():
            if id(tensor) not in self.known:
                tensor.zero_()
