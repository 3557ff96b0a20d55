"""The training loop: where a resumed state lies, evaluations that are owed, golden losses."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from pretrain.training import loop as loop_module
from pretrain.training.checkpoints import newest_checkpoint, save_checkpoint
from pretrain.training.distributed import make_fabric
from pretrain.training.ema import averaged
from pretrain.training.loop import fit
from pretrain.training.loop_config import Loop
from pretrain.training.measuring import STEPS
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.run_files import CHECKPOINTS
from tests.helpers.toy import Toy, batches


def run(path, *, steps=6, resume=False, **kwargs):
    method = Toy()
    optimizer = torch.optim.AdamW(kwargs.pop("groups", Toy.parameters)(method), lr=0.1, fused=False)
    loop = {"save_every": 2, "log_every": 1, **kwargs.pop("loop", {})}
    with RunFolder.open(path, resume=resume, artefact="done") as folder:
        folder.write_config({"values": {}})
        fit(
            kwargs.pop("fabric", None) or make_fabric(),
            method,
            optimizer,
            loop=Loop(total_steps=steps, batch_size=4, steps_per_epoch=3, **loop),
            lr_at=lambda step: 1 - step / 10,
            batches=kwargs.pop("batches", batches),
            folder=folder,
            metric_names=("loss",),
            **kwargs,
        )
    return method, optimizer


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_golden_losses(tmp_path):
    """Ten fixed steps: whoever changes a number here changes the bytes of every run."""
    run(tmp_path / "run", steps=10)
    expected = [1.503929, 0.645432, 1.806558, 0.823586, 3.074718, 3.528111, 1.67948, 2.028469, 0.773511, 2.122746]
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)


def test_a_recipes_values_are_the_loops():
    recipe = SimpleNamespace(batch_size=24, clip_grad=0.7, accumulate=3, seed=5)
    options = SimpleNamespace(save_every=11, log_every=13, rehearse=False)
    expected = Loop(
        total_steps=100, batch_size=24, steps_per_epoch=7, clip_grad=0.7, clip_per_parameter=True, accumulate=3,
        save_every=11, log_every=13, eval_every=None, monitor_every=4, seed=5, stop_after=None,
    )  # fmt: skip
    made = Loop.of(recipe, options, 100, 7, clip_per_parameter=True, eval_every=0, monitor_every=4)
    assert made == expected
    recipe.clip_grad, options.rehearse = 0.0, True
    made = Loop.of(recipe, options, 100, 7)
    assert (made.clip_grad, made.clip_per_parameter, made.end) == (None, False, STEPS)


def test_each_step_of_each_process_has_a_seed_of_its_own(tmp_path, monkeypatch):
    """The same seeds in all processes would draw the same drop path for all images of a step."""
    asked = []
    monkeypatch.setattr(loop_module, "step_seed", lambda *which: asked.append(which) or 1)
    run(tmp_path / "run", steps=3, loop={"seed": 7})
    assert asked == [(7, 0, 0), (7, 1, 0), (7, 2, 0)]
    asked.clear()
    fabric = make_fabric()
    monkeypatch.setattr(type(fabric), "global_rank", 1)
    run(tmp_path / "other", steps=2, loop={"seed": 7}, fabric=fabric)
    assert asked == [(7, 0, 1), (7, 1, 1)]


def test_the_lr_that_is_logged_is_that_of_the_last_layer(tmp_path):
    def groups(method):
        return [{"params": [method.layer.weight], "lr": 0.1}, {"params": [method.layer.bias], "lr": 0.025}]

    run(tmp_path / "run", steps=2, groups=groups)
    logged = [json.loads(line)["lr"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([0.1, 0.1 * 0.9])


def test_stopped_and_resumed_equals_whole(tmp_path):
    whole, _ = run(tmp_path / "whole", average=None)
    run(tmp_path / "parts", steps=4)
    again, _ = run(tmp_path / "parts", steps=6, resume=True)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


class OnAnotherDevice:
    """A Fabric that moves the model to another device when it sets it up, as one with a GPU does."""

    def __init__(self, device):
        self.fabric, self.device = make_fabric(), device

    def __getattr__(self, name):
        return getattr(self.fabric, name)

    def setup(self, method, optimizer):
        method.to(self.device)
        optimizer.param_groups[0]["params"] = list(method.parameters())  # "meta" makes new ones
        return method, optimizer


@pytest.mark.filterwarnings("ignore:for layer")
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_resumed_state_lies_where_the_parameters_lie(device, tmp_path):
    run(tmp_path / "run", steps=2, fabric=make_fabric(device="cpu"), average=averaged(Toy(), 0.9))
    method = Toy()
    average = averaged(method, 0.9, torch.device(device))
    method, optimizer = run(tmp_path / "run", steps=2, resume=True, fabric=OnAnotherDevice(device), average=average)
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert len(moments) == 4  # two moments of weight and bias each
    assert {tensor.device.type for tensor in [*moments, *average.module.parameters()]} == {device}


def test_the_next_batch_is_taken_before_the_host_waits_and_its_error_is_not_this_steps(tmp_path, monkeypatch):
    """What cannot be read at step 3 leaves steps 1 and 2 made, logged and saved."""
    events = []

    def source(start):
        for number, batch in enumerate(batches(start, total=2)):
            events.append(f"batch {number + 1}")
            yield batch
        raise ValueError("gone.jpg could be read")

    monkeypatch.setattr("pretrain.training.loop.agree", lambda *_: events.append("wait") or 0)
    with pytest.raises(ValueError, match="gone.jpg"):
        run(tmp_path / "run", steps=6, batches=source, loop={"save_every": 1, "log_every": 1})
    assert events == ["batch 1", "batch 2", "wait", "wait"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert newest_checkpoint(tmp_path / "run" / "checkpoints")[0]["step"] == 2


def test_an_evaluation_owed_is_made_before_the_next_step(tmp_path):
    """A run killed in the middle of the evaluation after step 4 makes it when it is resumed, with those weights."""

    def evaluations(path, killed_at=None, **kwargs):
        made, weights = [], []

        def evaluate(step):
            if step == killed_at:
                raise KeyboardInterrupt
            made.append(step)
            weights.append(held[0].layer.weight.detach().clone())

        held = []
        original = Toy.__init__

        def remember(self):
            original(self)
            held.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Toy, "__init__", remember)
            options = {"loop": {"eval_every": 2}, "evaluate": evaluate, "is_evaluated": lambda step: step in done}
            if killed_at is None:
                run(path, **options, **kwargs)
            else:
                with pytest.raises(KeyboardInterrupt):
                    run(path, **options, **kwargs)
        return made, weights

    done = set()
    whole, weights = evaluations(tmp_path / "whole")
    assert whole == [2, 4]  # the one after the last step is the caller's
    first, _ = evaluations(tmp_path / "killed", killed_at=4)
    done |= set(first)
    second, again = evaluations(tmp_path / "killed", resume=True)
    assert (first, second) == ([2], [4])
    assert torch.equal(again[0], weights[1])
    done |= {4}
    assert evaluations(tmp_path / "killed", resume=True)[0] == []


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(tmp_path):
    method = Toy()
    with torch.no_grad():
        method.layer.bias.fill_(float("inf"))
    with RunFolder.open(tmp_path / "run", resume=False, artefact="done") as folder:
        with pytest.raises(ValueError, match="not finite at step 1"):
            fit(
                make_fabric(),
                method,
                torch.optim.SGD(method.parameters(), lr=0.1),
                loop=Loop(total_steps=2, batch_size=4, steps_per_epoch=3),
                lr_at=lambda step: 1.0,
                batches=batches,
                folder=folder,
                metric_names=("loss",),
            )
    assert not list((tmp_path / "run").glob(f"{CHECKPOINTS}/*"))


def test_checkpoint_format_is_that_of_earlier_versions(tmp_path):
    """Names in a checkpoint are what a run started earlier resumes from."""
    from safetensors import safe_open

    method = Toy()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1, fused=False)
    method(next(batches(0)))["loss"].backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, 1, method, optimizer, averaged(method, 0.9))
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == [
            "average.layer.bias",
            "average.layer.weight",
            "model.layer.bias",
            "model.layer.weight",
            *(f"optimizer.{index}.{name}" for index in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")),
        ]
        assert set(file.metadata()) == {"state", "sha256"}


class Closed:
    """Batches that are closed once nobody wants them any more."""

    def __init__(self, source):
        self.source, self.closed = source, 0

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.source)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("fails_after", [None, 3])
def test_batches_are_closed_at_the_end_and_before_an_error_leaves(fails_after, tmp_path):
    opened = []

    def open_batches(start):
        opened.append(Closed(batches(start)))
        return opened[-1]

    def after_step(step):
        if step == fails_after:
            raise OSError("the network is gone")

    if fails_after is None:
        run(tmp_path / "run", batches=open_batches)
    else:
        with pytest.raises(OSError, match="the network is gone"):
            run(tmp_path / "run", batches=open_batches, after_step=[after_step])
    assert [each.closed for each in opened] == [1]


def test_weight_decay_follows_its_schedule_where_there_is_one(tmp_path):
    """Weight and bias: the bias has none at the start and gets none."""
    method, seen = Toy(), []
    optimizer = torch.optim.AdamW(param_groups(method, 0.1, 0.04))
    with RunFolder.open(tmp_path / "run", resume=False, artefact="done") as folder:
        fit(
            make_fabric(),
            method,
            optimizer,
            loop=Loop(total_steps=3, batch_size=4, steps_per_epoch=3),
            lr_at=lambda step: 1.0,
            batches=batches,
            folder=folder,
            metric_names=("loss",),
            weight_decay_at=lambda step: 0.5 + step,
            after_step=[lambda _: seen.append({g["names"][0]: g["weight_decay"] for g in optimizer.param_groups})],
        )
    assert seen == [{"layer.bias": 0.0, "layer.weight": 0.5 + step} for step in range(3)]


@pytest.mark.parametrize("during", ["step", "save", "the workers' end"])
@pytest.mark.parametrize("more_follows", [False, True])
def test_a_signal_during_the_last_step_ends_a_run_that_would_go_on_for_long(tmp_path, more_follows, during):
    def before_step(step):
        if step == 5 and during == "step":
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.1

    def after_step(done):
        if done == 6 and during == "save":
            os.kill(os.getpid(), signal.SIGTERM)

    def ending(start):
        try:
            yield from batches(start)
        finally:
            if during == "the workers' end":
                os.kill(os.getpid(), signal.SIGTERM)

    options = {"batches": ending} | {
        "after_step": [after_step],
        "weight_decay_at": before_step,
        "more_follows": more_follows,
    }
    if more_follows:
        with pytest.raises(SystemExit) as ended:
            run(tmp_path, **options)
        assert ended.value.code == 143
    else:
        run(tmp_path, **options)
    assert newest_checkpoint(tmp_path / "checkpoints")[0]["step"] == 6
    run(tmp_path, resume=True, more_follows=more_follows)
