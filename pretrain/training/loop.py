"""The one training loop: step, log, save, evaluate, stop, resume. Every trainer of the project runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pretrain.training.checkpoints import restore_newest, save_checkpoint
from pretrain.training.distributed import agree, gather
from pretrain.training.loader import step_batches
from pretrain.training.loop_config import Loop
from pretrain.training.reporting import Reporter
from pretrain.training.run_folder import RunFolder
from pretrain.training.schedule import set_lr
from pretrain.training.signals import StopSignals
from pretrain.training.static_step import StaticStep
from pretrain.training.step import GradCached, step_seed, train_step
from splitmask_backbones.run_files import CHECKPOINTS

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class _Ahead(Iterator[Any]):
    """Batches, of which the next can be asked for before it is needed: a card copies and crops it behind the step.

    Args:
        source: what it takes them from.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._held: list[Callable[[], Any]] = []

    def fetch(self) -> None:
        """Takes the next batch; an error of it is kept until the batch is asked for: this step is not its."""
        try:
            batch = next(self._source)
            self._held.append(lambda: batch)
        except Exception as error:
            self._held.append(partial(_raise, error))

    def __next__(self) -> Any:
        return self._held.pop()() if self._held else next(self._source)


def _raise(error: Exception) -> None:
    raise error


def batches_of(
    dataset: Any,
    loop: Loop,
    fabric: Fabric,
    workers: int,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    repeats: int = 1,
) -> Callable[[int], Iterator[Any]]:
    """Returns what gives this rank's micro-batches of a data set from a step on; arguments as of `step_batches`."""
    return lambda start: step_batches(
        dataset,
        num_items=len(dataset),
        batch_size=loop.batch_size,
        seed=loop.seed,
        start_step=start,
        total_steps=loop.total_steps,
        workers=workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        accumulate=loop.accumulate,
        collate_fn=collate_fn,
        repeats=repeats,
        pin_memory=fabric.device.type == "cuda",
    )


def fit(
    fabric: Fabric,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    loop: Loop,
    lr_at: Callable[[int], float],
    batches: Callable[[int], Iterator[Any]],
    folder: RunFolder,
    metric_names: Sequence[str],
    title: str = "train",
    average: AveragedModel | None = None,
    evaluate: Callable[[int], dict[str, float | None] | None] | None = None,
    is_evaluated: Callable[[int], bool] | None = None,
    after_step: Sequence[Callable[[int], None]] = (),
    weight_decay_at: Callable[[int], float] | None = None,
    monitor: Callable[[], dict[str, float | None]] | None = None,
    grad_cache: GradCached | None = None,
    static: bool = False,
    more_follows: bool = False,
) -> None:
    """Trains `method` in place from the folder's newest checkpoint, or from the start, to `loop.end`.

    The result depends on the seed, the data, the recipe and the number of threads; not on logging, saving, workers or
    on how often the run was stopped and resumed.

    Args:
        fabric: device, precision, processes.
        method: `method(batch)` returns named 0-dim tensors, "loss" among them.
        optimizer: its groups' initial lr are the peak values.
        loop: length and intervals.
        lr_at: factor on the peak lr of each group for a step (0-based).
        batches: `batches(start_step)` yields this rank's micro-batches from that step on.
        folder: where checkpoints, metrics.jsonl and TensorBoard events go.
        metric_names: entries of the method's result that are logged; a missing one is logged as null.
        title: in front of the progress bar.
        average: of `averaged(method, ...)`; takes in the weights after each step.
        evaluate: called in every process with the finished steps, `loop.eval_every` of them apart and not after the
            last; what it returns goes to TensorBoard. The state is saved before; a signal ends it at once.
        is_evaluated: whether the evaluation after so many steps was made to its end: a run that was stopped in the
            middle of one makes it first when it is resumed.
        after_step: called one by one with the number of finished steps after each, before the state is saved.
        weight_decay_at: weight decay for a step (0-based) of the groups that have one.
        monitor: returns what goes into monitor.jsonl after steps `loop.monitor_every` apart and after the last;
            called in the main process alone, before the state is saved: a resume finds each line it needs.
        grad_cache: as of `train_step`.
        static: steps are made by `StaticStep`, as a CUDA graph on a GPU.
        more_follows: whether something long follows the last step, such as an evaluation: a signal that comes until
            its state is saved ends the run before that.

    Raises:
        ValueError: the loss or gradient is not finite (the step is not made, earlier checkpoints stay).
        SystemExit: 143 or 130 after SIGTERM or SIGINT; the state is saved first.
    """
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    checkpoints = folder.path / CHECKPOINTS
    model, wrapped_optimizer = fabric.setup(method, optimizer)
    # Only now: the optimizer's state goes where its parameters are.
    start_step = restore_newest(checkpoints, method, optimizer, average) if folder.resumed else 0
    clip: Any = {"clip_grad": loop.clip_grad, "clip_per_parameter": loop.clip_per_parameter}
    make_step: Callable[..., dict[str, Tensor]]
    if static:
        make_step = StaticStep(fabric, model, optimizer, **clip)
    else:
        more: Any = {"accumulate": loop.accumulate, "grad_cache": grad_cache, **clip}
        ordinary: Callable[..., dict[str, Tensor]] = train_step
        make_step = partial(ordinary, fabric, model, wrapped_optimizer, **more)
    method.train()
    reporter = Reporter(fabric, folder.path, loop, start_step, title, metric_names)
    saved_step = start_step
    stop = StopSignals()
    stop_signal = 0

    def save(step: int) -> None:
        nonlocal saved_step
        if fabric.is_global_zero and step != saved_step:
            save_checkpoint(checkpoints, step, method, optimizer, average)
        saved_step = step

    def evaluate_at_once(step: int) -> None:
        assert evaluate is not None
        stop.graceful = False  # the state is saved, and what is evaluated in vain is evaluated again
        if stop.received is not None:
            raise SystemExit(128 + stop.received)
        reporter.evaluation(step, evaluate(step))
        stop.graceful = True
        method.train()

    def timed(data: Iterator[Any]) -> Iterator[Any]:
        while True:
            with reporter.clock.waiting():
                batch = fabric.to_device(next(data))
            yield batch

    def stop_at(step: int, number: int) -> NoReturn:
        reporter.note(f"stopped and saved at step {step} of {loop.end}: --resume goes on from here")
        fabric.barrier()  # torchrun ends all processes when one is gone: not while another saves
        raise SystemExit(128 + number)

    with ExitStack() as stack:
        stack.enter_context(reporter)
        stack.enter_context(stop)
        stop.graceful = True
        # Asked of the main process, which wrote what tells it.
        if is_evaluated and loop.evaluates_after(start_step) and not gather([is_evaluated(start_step)])[0]:
            evaluate_at_once(start_step)
        source = batches(start_step) if start_step < loop.end else iter(())
        folder.start()  # what stood in the way of the first step has been told
        # An error's traceback would hold the data workers for as long as somebody looks at it.
        closing = stack.enter_context(ExitStack())
        closing.callback(getattr(source, "close", lambda: None))
        data = _Ahead(timed(source))
        for step in range(start_step, loop.end):
            factor = lr_at(step)
            set_lr(optimizer.param_groups, factor)
            for group in optimizer.param_groups:
                if weight_decay_at is not None and group["weight_decay"]:
                    group["weight_decay"] = weight_decay_at(step)
            torch.manual_seed(step_seed(loop.seed, step, fabric.global_rank))

            def approve(loss: Tensor, grad_norm: Tensor, step: int = step) -> None:
                nonlocal stop_signal
                if step + 1 < loop.end:
                    data.fetch()  # before the host waits for the step
                stop_signal = agree(loss, grad_norm, stop.received, step)

            values = make_step(data, approve=approve)
            done = step + 1
            if average is not None:
                average.update_parameters(method)
            for call in after_step:
                call(done)
            reporter.step(done, values, optimizer, factor)
            if monitor is not None and loop.monitors_after(done):
                reporter.look(done, monitor)
            evaluates = evaluate is not None and loop.evaluates_after(done) and not stop_signal
            if done % loop.save_every == 0 or done == loop.end or stop_signal or evaluates:
                save(done)
            if evaluates:
                evaluate_at_once(done)
            if stop_signal and done < loop.end:
                stop_at(done, stop_signal)
        closing.close()  # it takes seconds, in which a signal may come too
        received = [number for number in gather([stop.received]) if number is not None] if more_follows else []
        if received:
            stop_at(loop.end, received[0])
    fabric.barrier()
