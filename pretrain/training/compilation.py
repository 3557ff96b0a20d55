"""`--compile`: transformer blocks as compiled code, one graph for all blocks of a kind, eager where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.training.options import AUTO, ON
from splitmask_backbones.vit import Block

logger = logging.getLogger(__name__)

AUTO_STEPS = 5000
"""Steps from which `auto` compiles on a GPU. Compiling took 67 s there, and a step became 33 ms shorter (ViT-S, batch
512; paid after 2,000 steps) or 19 ms (ViT-B, batch 256; 3,600)."""


def pays(choice: str, device: torch.device, total_steps: int) -> bool:
    """Returns whether a run compiles; a run and its resumes choose the same.

    Args:
        choice: of `pretrain.training.options.COMPILE`.
        device: where the model is trained.
        total_steps: of the whole run.
    """
    return choice == ON or choice == AUTO and device.type == "cuda" and total_steps >= AUTO_STEPS


def say_choice(choice: str, chosen: bool) -> None:
    """Says what `auto` has chosen, see `pays`."""
    if choice == AUTO:
        what = "compiled" if chosen else "not compiled"
        logger.info("--compile auto: %s (it pays on a GPU from %d steps on)", what, AUTO_STEPS)


class _Compiled:
    """A block's forward pass in training mode, compiled; eager for good after the first failure.

    Blocks share code: what differs between them (weights, the rate of stochastic depth) are inputs of the graph. Looks
    of a monitor, in evaluation mode, have batches of their own sizes and are not worth a graph.

    A kernel may fail where it is first run, that of a backward pass where no eager block could take its place any
    more. Hence a block tries both passes on inputs of each new shape, on a copy, and draws nothing from the run.
    """

    def __init__(self, block: Block, compiled: Callable[..., Any], failed: list[bool]) -> None:
        self.block, self.compiled, self.failed = block, compiled, failed
        self.tried: set[tuple[Any, ...]] = set()

    def __call__(self, *args: Any) -> Any:
        if self.block.training and not self.failed:
            try:
                self._try(args)
                return self.compiled(self.block, *args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.failed.append(True)
                reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
                logger.warning("--compile: the run goes on without compiled blocks (%s)", reason)
        return Block.forward(self.block, *args)

    def _try(self, args: tuple[Any, ...]) -> None:
        """Makes both passes once for each kind of input; weights, gradients and random numbers stay as they are."""
        kind = (torch.is_grad_enabled(), *((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in args))
        if kind in self.tried:
            return
        self.tried.add(kind)
        inputs = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
        device = inputs[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            output = self.compiled(self.block, *inputs)
            if output.requires_grad:
                leaves = [x for x in [*inputs, *self.block.parameters()] if isinstance(x, Tensor) and x.requires_grad]
                torch.autograd.grad(output, leaves, torch.zeros_like(output), allow_unused=True)


def has_failed(model: nn.Module) -> bool:
    """Returns whether blocks of `compile_blocks` have fallen back to eager code."""
    return any(isinstance(module.forward, _Compiled) and bool(module.forward.failed) for module in model.modules())


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Lets every `Block` of a model be compiled at its first use in training; returns how many there are.

    Names, parameters and random numbers stay as they are: stochastic depth draws what it draws without. Losses equal
    those of eager blocks to rounding.

    Args:
        model: before Fabric wraps it.
        backend: of `torch.compile`.
    """
    import torch._dynamo
    import torch._functorch.config

    # DDP's buckets would cut every block in two graphs; its all-reduce runs beside the blocks before as it is.
    torch._dynamo.config.optimize_ddp = False
    # Else the backward pass is compiled at the first one, where nothing could fall back to eager blocks.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    options: dict[str, Any] = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    compiled = torch.compile(Block.forward, backend=backend, **options)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    failed: list[bool] = []
    for block in blocks:
        block.forward = _Compiled(block, compiled, failed)  # type: ignore[method-assign, assignment]
    return len(blocks)
