"""Device, precision and processes: Lightning Fabric, set up the same way for every trainer, and what ranks agree on."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.training.options import DEVICES, PRECISIONS
from pretrain.training.processes import drop_empty_variables, processes
from splitmask_backbones.errors import UserError, check_choice

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)
T = TypeVar("T")

FABRIC_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names of `PRECISIONS`."""
_FAILED = "splitmask_failed"
_SAID_AFTER_SECONDS = 15.0
_LEAVING_SECONDS = 5.0


def make_fabric(
    precision: str = "32",
    device: str = "auto",
    find_unused_parameters: bool = False,
    deterministic: bool = False,
    broadcast_buffers: bool = True,
) -> Fabric:
    """Returns a launched Fabric: one process, or all of torchrun's with DDP (gloo on CPUs).

    Args:
        precision: of `PRECISIONS`.
        device: of `DEVICES`; "auto" is a GPU where there is one.
        find_unused_parameters: for models of which a step may leave parameters without a gradient.
        deterministic: on a GPU, algorithms that make the same bytes each time, and none that do not; a CPU's always do.
        broadcast_buffers: for models whose buffers a step changes in each process by itself (batch statistics).

    Raises:
        ValueError: unknown precision or device, no GPU, more processes on this machine than GPUs, or what
            `processes` raises.
    """
    own = processes()
    drop_empty_variables()
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    check_choice("precision", precision, PRECISIONS, "--precision")
    check_device(device)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning_fabric")
    # The new names of TF32's switches are not to be mixed with the old ones, which torch 2.8 knows.
    warnings.filterwarnings("ignore", message="Please use the new API settings")
    local = own.local_world_size
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if 0 < num_gpus < local:
        raise UserError(
            f"--nproc-per-node={local} starts more processes than this machine has GPUs ({num_gpus}): "
            f"use --nproc-per-node={num_gpus}, or --device cpu"
        )
    # The first process alone checks the images and makes the codebook while the others wait.
    options = {"find_unused_parameters": find_unused_parameters, "broadcast_buffers": broadcast_buffers}
    ddp: Any = DDPStrategy(timeout=timedelta(hours=12), **options)  # type: ignore[arg-type]
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=own.world_size // local,
        strategy=ddp if own.world_size > 1 else "auto",
        precision=FABRIC_PRECISIONS[precision],  # type: ignore[arg-type]
        # Named, so that Fabric does not look for SLURM's variables and others itself.
        plugins=[TorchElasticEnvironment() if own.world_size > 1 else LightningEnvironment()],
    )
    use_deterministic(deterministic and fabric.device.type == "cuda")
    with waiting_for(f"{own.others} at {own.address}:{own.port}"):
        fabric.launch()
    if is_distributed():
        _failures()  # connected while all is well
        _leave_gloo_at_exit()
    if fabric.is_global_zero and fabric.device.type == "cpu" and precision == "bf16" and cpu_has_bf16() is False:
        logger.warning("this CPU computes bf16 in emulation, up to 30 times slower than float32: use --precision 32")
    on_gpu = fabric.device.type == "cuda"
    if fabric.is_global_zero and on_gpu and precision == "32" and torch.cuda.is_bf16_supported(False):
        logger.warning("--precision 32 is full float32, many times slower on this GPU than --precision bf16")
    return fabric


def _leave_gloo_at_exit() -> None:
    """Sees to it that gloo's threads end before Python does.

    Such a thread frees the tensors of a collective after it has told of its end. Where Python ends in between, that
    aborts the process (SIGABRT; every third one that ended right after a collective), and torchrun calls the run
    failed. The threads end with the last model that holds the group, hence the collector. A process that fails while
    a thread of it waits for another process does not wait along, hence a thread that does; it begins here, because
    Python 3.12 starts none while it ends.
    """
    ends, left = threading.Event(), threading.Event()

    def leave() -> None:
        ends.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        left.set()

    def end() -> None:
        gc.collect()
        ends.set()
        left.wait(_LEAVING_SECONDS)

    threading.Thread(target=leave, daemon=True).start()
    atexit.register(end)


def check_device(device: str) -> None:
    """Raises ValueError where a device is unknown, or a GPU that is not there."""
    check_choice("--device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was installed without CUDA" if built is None else f"torch (CUDA {built}) finds none"
        raise UserError(f"--device cuda: there is no GPU to use ({why}): install a driver, or use --device cpu")


def use_deterministic(on: bool) -> None:
    """Lets torch take deterministic algorithms only, or whatever is fastest; an operation without one is an error."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read where cuBLAS is first used
    # By itself too: `any_algorithm` is not meant for convolutions.
    torch.backends.cudnn.deterministic = on
    # Not as a mere warning: attention takes its deterministic backward pass only where it has to.
    torch.use_deterministic_algorithms(on)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = not on  # type: ignore[attr-defined]


@contextmanager
def any_algorithm() -> Iterator[None]:
    """Lets torch take any algorithm within, for what comes out the same in any order, as counts of whole numbers do."""
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def cpu_has_bf16() -> bool | None:
    """Returns whether this machine's CPU has instructions for bf16, None where that is not known."""
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if flags.get("architecture") != "x86_64":
        return None
    return any(flags.get(name) for name in ("avx512_bf16", "amx_bf16"))


def is_distributed() -> bool:
    """Returns whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def waiting_for(whom: str) -> Iterator[None]:
    """Says on the screen for whom this process waits, where the block takes long."""
    own = processes()
    text = "rank %d of %d waits for %s (Ctrl-C or SIGTERM ends it)"
    timer = threading.Timer(_SAID_AFTER_SECONDS, logger.warning, [text, own.rank, own.world_size, whom])
    timer.daemon = True
    if own.world_size > 1 and (own.local_rank == 0 or own.rank == 1):  # one a machine, beside rank 0
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Runs the block in the main process, then in the others, which find what it has written; yields whether main."""
    is_main = not is_distributed() or dist.get_rank() == 0
    if not is_main:
        with waiting_for("rank 0, which prepares what all need"):
            dist.barrier()
    yield is_main
    if is_distributed() and is_main:
        dist.barrier()


def gather(items: list[Any]) -> list[Any]:
    """Returns the items of all processes, rank by rank; to be called by all of them."""
    if not is_distributed():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def ending_together(call: Callable[[], T]) -> T:
    """Returns what a call returns, which all processes make: an error of the user in one of them is one in all.

    Raises:
        ValueError: in all processes, that of the first rank that has one.
    """
    result, error = None, None
    try:
        result = call()
    except UserError as raised:
        error = raised
    first = next((text for text in gather([error and str(error)]) if text), None)
    if first is not None:
        raise UserError(first)
    return result  # type: ignore[return-value]


def agree(loss: Tensor, grad_norm: Tensor, received: int | None, step: int) -> int:
    """Returns the signal that any process received, or 0; to be called by all of them for each step.

    Args:
        loss: 0-dim, this process's.
        grad_norm: 0-dim.
        received: signal number of this process.
        step: from 0.

    Raises:
        ValueError: in all processes, where any has a loss or gradient that is not finite.
    """
    finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    state = torch.stack([(~finite).float(), torch.full((), float(received or 0), device=loss.device)])
    if is_distributed():
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
    bad, signal = state.tolist()
    if bad:
        raise UserError(
            f"the loss is not finite at step {step + 1} (loss {float(loss)}, gradient norm {float(grad_norm)}): "
            "earlier checkpoints are kept; use a lower --lr, a longer warm-up or --precision 32"
        )
    return int(signal)


def mean_over_ranks(values: Sequence[Tensor]) -> list[float]:
    """Returns the means of 0-dim tensors over the processes."""
    if not values:
        return []
    stacked = torch.stack([value.detach() for value in values])
    if is_distributed():
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return [float(value) for value in stacked]


def share_buffers(model: nn.Module) -> None:
    """Gives all processes the main one's buffers: batch statistics are each process's own, and only its are kept."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


@cache
def _failures() -> Any:
    """Returns a connection to the store that the processes share, for failures alone.

    The process group's own connection is taken while a process waits on it. torchrun keeps the store in a process of
    its own, so that it outlives each rank.
    """
    own = processes()
    return dist.TCPStore(own.address, own.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))


def announce_failure() -> bool:
    """Tells the other processes that this one ends with an error; returns whether it is the first to say so."""
    with suppress(RuntimeError, KeyError):  # the store may have gone
        return not is_distributed() or _failures().add(_FAILED, 1) == 1
    return True


def has_failed() -> bool:
    """Returns whether any process of the run has announced a failure."""
    with suppress(RuntimeError, KeyError):
        return is_distributed() and bool(_failures().check([_FAILED]))
    return False


def machine_record(fabric: Fabric) -> dict[str, Any]:
    """Returns what config.json says of the machine of a run: free to change, and yet some of it rounds otherwise."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size,
        "device": fabric.device.type,
    }


def end_where_blocked(number: int, is_graceful: Callable[[], bool], seconds: float = 2.0) -> None:
    """Ends this process where a signal cannot reach Python: called in a thread of its own, after a signal.

    A rank that waits for another in a collective does not return to Python, and torchrun would wait for it for half a
    minute. Where another rank has failed there is nothing to save; a rank that is being set up has nothing to save
    either, but gets `seconds` to leave by itself; a rank that trains saves after its step.

    Args:
        number: of the signal.
        is_graceful: whether the loop acts on signals after the running step.
        seconds: that are left to the main thread.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or is_graceful() and not has_failed():
        time.sleep(0.1)
    sys.stdout.flush()
    os._exit(128 + number)
