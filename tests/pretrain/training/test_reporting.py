"""What a training tells of its steps: which ones are logged, with what, and by whom."""

import json
from types import SimpleNamespace

import pytest
import torch

from pretrain.training.loop_config import Loop
from pretrain.training.reporting import Reporter
from splitmask_backbones.run_files import METRICS_LOG, MONITOR_LOG

LOOP = Loop(total_steps=5, batch_size=8, steps_per_epoch=4, log_every=2)


def values(loss):
    return {"loss": torch.tensor(loss), "grad_norm": torch.tensor(3.0)}


def optimizer():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "peak_lr": peak} for peak in (0.1, 0.4)]
    return torch.optim.SGD(groups, lr=1.0)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_second_step_and_the_last_are_logged(tmp_path, capsys):
    with Reporter(SimpleNamespace(is_global_zero=True), tmp_path, LOOP, 0, "train", ("loss", "other")) as reporter:
        for step in range(1, 6):
            reporter.step(step, values(float(step)), optimizer(), factor=0.5)
    found = lines(tmp_path / METRICS_LOG)
    assert [entry.pop("images_per_second") > 0 for entry in found] == [True] * 3
    rest = {"other": None, "lr": pytest.approx(0.2), "grad_norm": 3.0}
    assert found == [
        {"step": step, "epoch": step / 4, "images": 8 * step, "loss": float(step), **rest} for step in (2, 4, 5)
    ]
    assert "step 4/5  loss 4" in capsys.readouterr().out


def test_the_images_of_a_second_leave_out_looks_and_evaluations(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Reporter(SimpleNamespace(is_global_zero=True), tmp_path, LOOP, 0, "train", ("loss",)) as reporter:

        def look():
            now[0] += 100.0
            return {"effective_rank": 2.0}

        def train(step):
            now[0] += 1.0
            reporter.step(step, values(1.0), optimizer(), factor=1.0)

        train(1)
        reporter.look(1, look)
        train(2)
        now[0] += 50.0
        reporter.evaluation(2, {"mIoU": 40.0})
        train(3)
        train(4)
    assert [entry["images_per_second"] for entry in lines(tmp_path / METRICS_LOG)] == [8.0, 8.0]
    assert lines(tmp_path / MONITOR_LOG) == [{"step": 1, "epoch": 0.25, "images": 8, "effective_rank": 2.0}]


def test_other_processes_write_and_show_nothing(tmp_path, capsys):
    with Reporter(SimpleNamespace(is_global_zero=False), tmp_path, LOOP, 0, "train", ("loss",)) as reporter:
        reporter.step(5, values(1.0), optimizer(), factor=1.0)
        reporter.look(5, lambda: pytest.fail("only the main process looks"))
        reporter.evaluation(5, {"mIoU": 40.0})
        reporter.note("stopped")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
