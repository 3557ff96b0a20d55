"""The step at fixed addresses: the bytes of the ordinary one, refusals; on a GPU, as a graph."""

import logging

import pytest
import torch

from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training.distributed import make_fabric
from pretrain.training.loop import fit
from pretrain.training.loop_config import Loop
from pretrain.training.optimizer import adamw
from pretrain.training.run_folder import RunFolder
from pretrain.training.static_step import WARM_UP_STEPS, Held, StaticStep, check_graph
from splitmask_backbones import VisionTransformer
from splitmask_backbones.param_groups import param_groups
from tests.helpers.pretrain_tool import OPTIONS, error_of, run
from tests.helpers.splitmask import make_batch
from tests.helpers.toy import Toy, batches


def toy_run(path, *, static, steps=6, resume=False, device="cpu"):
    fabric = make_fabric(device=device)
    method = Toy()
    optimizer = adamw(param_groups(method, 0.1, 0.05), fabric.device, in_graph=static)
    with RunFolder.open(path, resume=resume, artefact="done") as folder:
        folder.write_config({"values": {}})
        fit(
            fabric,
            method,
            optimizer,
            loop=Loop(total_steps=steps, batch_size=4, steps_per_epoch=3, clip_grad=0.5, save_every=2, log_every=1),
            lr_at=lambda step: 0.3 + 0.7 / (step + 1),
            batches=batches,
            folder=folder,
            metric_names=("loss",),
            static=static,
        )
    return (path / "metrics.jsonl").read_text(), method


def without_speed(lines):
    return [line.split('"images_per_second"')[0] for line in lines.splitlines()]


def equal_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_bytes_and_log_are_those_of_the_ordinary_step(tmp_path):
    """Noise on the inputs, a clip that bites, a learning rate that differs in each step."""
    log, method = toy_run(tmp_path / "plain", static=False)
    static_log, static_method = toy_run(tmp_path / "static", static=True)
    assert without_speed(static_log) == without_speed(log)
    assert equal_weights(static_method, method)


def test_resumed_equals_whole_and_either_resumes_the_other(tmp_path):
    _, whole = toy_run(tmp_path / "whole", static=True)
    for name, first, second in (("same", True, True), ("other", False, True)):
        toy_run(tmp_path / name, static=first, steps=4)
        assert equal_weights(toy_run(tmp_path / name, static=second, resume=True)[1], whole)


def splitmask(device="cpu"):
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.5)
    return SplitMask(encoder, Tokenizer(random_projection(32, 768, 0)), branch_jitter=0.3).to(device)


def static_step(fabric, method):
    optimizer = adamw(param_groups(method, 3e-3, 0.05), fabric.device, in_graph=True)
    model, _ = fabric.setup(method, optimizer)
    return StaticStep(fabric, model, optimizer, clip_grad=3.0)


def steps(step, device, count=3):
    """Losses of steps with batches and seeds of their own."""
    found = []
    for number in range(count):
        batch = {name: value.to(device) for name, value in make_batch().items()}
        batch["image"] = batch["image"].roll(number, dims=0) // (number + 1)
        torch.manual_seed(number)
        found.append(step(iter([batch]))["loss"].item())
    return found


@pytest.mark.parametrize("before", [0, 2])
def test_steps_that_do_not_count_leave_no_trace(before):
    """What a recording does first, with and without an optimizer state."""
    found = []
    for warms_up in (False, True):
        method = splitmask()
        step = static_step(make_fabric(device="cpu"), method)
        losses = steps(step, "cpu", before)
        if warms_up:
            step._take(make_batch())
            held = Held(method, step.optimizer)
            for _ in range(WARM_UP_STEPS):
                step._make_gradients()
                step._make_update()
            held.put_back()
        found.append((losses + steps(step, "cpu"), method))
    (plain, method), (warmed, warmed_method) = found
    assert warmed == plain and len(set(plain)) == len(plain)
    assert equal_weights(warmed_method, method)


def test_inputs_keep_their_place_and_the_learning_rate_its_tensor():
    step = static_step(make_fabric(device="cpu"), splitmask())
    steps(step, "cpu", 1)
    places = {name: value.data_ptr() for name, value in step.batch.items()}
    lr = step.optimizer.param_groups[0]["lr"]
    steps(step, "cpu", 2)
    assert {name: value.data_ptr() for name, value in step.batch.items()} == places
    assert step.optimizer.param_groups[0]["lr"] is lr and lr.item() == 3e-3
    with pytest.raises(AssertionError, match="image"):
        step(iter([make_batch(batch=2)]))


def test_a_step_that_is_not_approved_leaves_the_weights():
    method = splitmask()
    step = static_step(make_fabric(device="cpu"), method)
    before = {name: value.clone() for name, value in method.state_dict().items()}

    def refuse(loss, grad_norm):
        assert loss.dim() == grad_norm.dim() == 0
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        step(iter([make_batch()]), approve=refuse)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


class Pretended:
    def __init__(self, device="cuda", world_size=1):
        self.device, self.world_size = torch.device(device), world_size


@pytest.mark.parametrize(
    ("fabric", "accumulate", "capturable", "expected"),
    [
        (Pretended("cpu"), 1, True, "needs a GPU, and the run computes on cpu: omit it"),
        (Pretended(world_size=2), 1, True, "for one process, and there are 2"),
        (Pretended(), 4, True, "omit it, or --accumulate 4"),
        (Pretended(), 1, False, "splitmask and beit"),
    ],
)
def test_what_cannot_be_recorded_is_refused(fabric, accumulate, capturable, expected):
    with pytest.raises(ValueError, match=expected):
        check_graph(fabric, accumulate=accumulate, capturable=capturable)
    check_graph(Pretended(), accumulate=1, capturable=True)


def test_the_tool_refuses_it_without_a_gpu_and_writes_nothing(image_folder, tmp_path):
    output = tmp_path / "run"
    words = ["--data", image_folder, "--output", output, "--device", "cpu", "--cuda-graph", "true"]
    assert "--cuda-graph true needs a GPU" in error_of(run(*OPTIONS, *words))
    assert not output.exists()


@pytest.mark.gpu
def test_a_graph_makes_the_losses_of_ordinary_steps(caplog):
    fabric = make_fabric(device="cuda")
    recorded, plain = static_step(fabric, splitmask("cuda")), static_step(fabric, splitmask("cuda"))
    plain._record = lambda: None
    caplog.clear()  # of what is said of float32
    with caplog.at_level(logging.WARNING, "pretrain"):
        found = steps(recorded, fabric.device, 6)
    assert not caplog.messages  # it was recorded
    assert isinstance(recorded._update.__self__, torch.cuda.CUDAGraph)
    assert found == pytest.approx(steps(plain, fabric.device, 6), rel=1e-4)
    assert len(set(found)) == 6


@pytest.mark.gpu
def test_what_cannot_be_recorded_goes_on_without_a_graph(caplog, monkeypatch):
    """Random numbers are drawn as before: a recording that breaks off has not kept the generator."""
    fabric = make_fabric(device="cuda")
    broken, plain = static_step(fabric, splitmask("cuda")), static_step(fabric, splitmask("cuda"))
    plain._record = lambda: None
    gradients = broken._make_gradients

    def asks_the_device():
        gradients()
        if torch.cuda.is_current_stream_capturing():
            broken.values["loss"].item()

    monkeypatch.setattr(broken, "_make_gradients", asks_the_device)
    with caplog.at_level(logging.WARNING, "pretrain"):
        found = steps(broken, fabric.device, 6)
    assert "the step cannot be recorded, the run goes on without" in caplog.text
    assert broken.failed
    assert found == pytest.approx(steps(plain, fabric.device, 6), rel=1e-4)
    assert torch.rand(2, device="cuda").isfinite().all()


@pytest.mark.gpu
def test_a_graph_follows_seed_and_learning_rate_and_a_resume_makes_the_same_bytes(tmp_path):
    log, whole = toy_run(tmp_path / "whole", static=True, device="cuda")
    plain_log, _ = toy_run(tmp_path / "plain", static=False, device="cuda")
    toy_run(tmp_path / "parts", static=True, steps=4, device="cuda")
    resumed_log, resumed = toy_run(tmp_path / "parts", static=True, resume=True, device="cuda")
    assert without_speed(resumed_log) == without_speed(log)
    assert equal_weights(resumed, whole)
    losses = [
        [float(line.split('"loss": ')[1].split(",")[0]) for line in text.splitlines()] for text in (log, plain_log)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
