"""The DINO baseline: loss against an independent statement, teacher, schedules."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightly", reason="the extra 'dino' is not installed")


from pretrain.training.schedule import cosine
from tests.helpers.dino import build


def make_batch(batch=3, local=2):
    rng = np.random.default_rng(0)
    return {
        "large": torch.from_numpy(rng.integers(0, 256, (batch, 2, 3, 32, 32), dtype=np.uint8)),
        "small": torch.from_numpy(rng.integers(0, 256, (batch, local, 3, 16, 16), dtype=np.uint8)),
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("local", [0, 2])
def test_loss_equals_an_independent_statement(local):
    method, batch = build().eval(), make_batch(local=local)
    method.loss.center.copy_(torch.linspace(-1, 1, 16))
    with torch.no_grad():
        teacher = [t.double().numpy() for t in method.outputs(method.teacher, batch["large"])]
        student = [s.double().numpy() for s in method.outputs(method.student, batch["large"])]
        if local:
            student += [s.double().numpy() for s in method.outputs(method.student, batch["small"])]
        values = method(batch)
    centre = np.linspace(-1, 1, 16)
    terms = []
    for i, t in enumerate(teacher):
        p = softmax((t - centre) / 0.04)
        for j, s in enumerate(student):
            if i != j:
                terms.append(-(p * np.log(softmax(s / 0.1))).sum(-1).mean())
    assert len(terms) == (2 if not local else 6)
    assert values["loss"].item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert torch.equal(method.loss.center.reshape(-1), torch.linspace(-1, 1, 16)), "moved after the step"
    method.after_step(1)
    expected = 0.9 * centre + 0.1 * np.concatenate(teacher).mean(0)
    np.testing.assert_allclose(method.loss.center.reshape(-1).numpy(), expected, rtol=1e-4, atol=1e-6)
    mean = np.mean([softmax((t - centre) / 0.04) for t in teacher], axis=(0, 1))
    assert values["teacher_entropy"].item() == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-4)


def test_outputs_belong_to_their_crops():
    method, batch = build().eval(), make_batch()
    with torch.no_grad():
        second = method.outputs(method.student, batch["large"])[1][2]
        alone = method.outputs(method.student, batch["large"][2:, 1:])[0][0]
    torch.testing.assert_close(second, alone, atol=1e-5, rtol=1e-4)


def test_the_student_learns_and_the_teacher_follows():
    method = build().train()
    assert not method.teacher.training and method.student.training and method.encoder is method.teacher["encoder"]
    before = {name: value.clone() for name, value in method.teacher.named_parameters()}
    method(make_batch())["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    without = [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad.abs().sum() == 0]
    assert without == ["head.last_layer.weight_v"]  # frozen in the first epoch
    method.after_step(1)
    for (name, old), new in zip(before.items(), method.student.parameters(), strict=True):
        expected = 0.9 * old + 0.1 * new  # of the first step: the momentum starts at 0.9
        torch.testing.assert_close(dict(method.teacher.named_parameters())[name], expected)
    method.after_step(2)
    method.zero_grad()
    method(make_batch())["loss"].backward()
    assert method.student["head"].last_layer.weight_v.grad.abs().sum() > 0


def test_the_last_layer_stands_still_in_the_first_epoch():
    """Not a bit of it moves, and afterwards the optimizer treats it as new."""
    method = build().train()
    last = method.student["head"].last_layer.weight_v
    optimizer = torch.optim.AdamW(
        [p for p in method.student.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.4
    )
    optimizer.register_step_pre_hook(lambda *_: method.before_step())
    before = last.detach().clone()
    for done in (1, 2, 3):
        optimizer.zero_grad()
        method(make_batch())["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in method.student.parameters() if p.grad is not None])
        rest = [p.grad for p in method.student.parameters() if p.grad is not None and p is not last]
        assert (norm == torch.nn.utils.get_total_norm(rest)) == (done <= 2)
        optimizer.step()
        method.after_step(done)
        assert torch.equal(last, before) == (done <= 2)
    assert optimizer.state[last]["step"] == 1


def test_schedules_by_hand():
    method = build()
    assert [method.teacher_momentum(step) for step in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])
    assert [cosine(step, 10, 0.04, 0.4) for step in (0, 5, 10, 12)] == pytest.approx([0.04, 0.22, 0.4, 0.4])


def test_state_holds_teacher_centre_and_place_in_the_schedule():
    method = build()
    method.after_step(7)
    names = set(method.state_dict())
    assert {"teacher.encoder.cls_token", "loss.center", "finished"} <= names
    other = build()
    assert other.steps == 0
    other.load_state_dict(method.state_dict(), strict=True)
    assert other.steps == int(other.finished) == 7


def test_temperature_is_warmed_up():
    method = build(temperature=0.07, warm_steps=4)
    assert [method.teacher_temperature(step) for step in (0, 2, 4, 9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert build(temperature=0.07).teacher_temperature(0) == 0.07
    losses = {}
    for done in (2, 4):  # at 0.055 and at 0.07
        method = build(temperature=0.07, warm_steps=4).eval()
        method.finished.fill_(done)
        losses[done] = method(make_batch())["loss"].item()
    assert losses[4] == build(temperature=0.07).eval()(make_batch())["loss"].item() != losses[2]
    assert losses[2] == pytest.approx(build(temperature=0.055).eval()(make_batch())["loss"].item(), rel=1e-6)


def test_golden_ten_steps():
    """Loss, frozen layer, centre and teacher together. Numbers come from NumPy: torch's generators differ."""
    rng = np.random.default_rng(0)
    method, batch = build().eval(), make_batch()
    with torch.no_grad():
        for parameter in method.student.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(rng.normal(scale=0.1, size=tuple(parameter.shape))))
    method.teacher.load_state_dict(method.student.state_dict())
    optimizer = torch.optim.AdamW([p for p in method.student.parameters() if p.requires_grad], lr=3e-4)
    losses = []
    for step in range(10):
        loss = method(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step + 1)
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN, rel=5e-3)


GOLDEN = [2.4825, 2.3255, 2.2422, 2.1618, 2.1448, 2.1262, 2.1339, 2.1681, 2.2163, 2.2812]


def test_micro_batches_move_the_centre_as_one_batch_does():
    """Once a step, by the mean of the teacher's outputs on all of its images."""
    batch, centres = make_batch(batch=6), []
    for parts in (1, 3):
        method = build().eval()
        with torch.no_grad():
            for part in zip(*(value.chunk(parts) for value in batch.values()), strict=True):
                method(dict(zip(batch, part, strict=True)))
        method.after_step(1)
        centres.append(method.loss.center)
    assert centres[0].abs().max() > 0
    torch.testing.assert_close(centres[1], centres[0], atol=1e-7, rtol=1e-5)
