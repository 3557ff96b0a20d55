"""The moving average of weights, against a loop by hand, and the best detector of several evaluations."""

import json

import torch
from torch import nn

from pretrain.training.ema import WeightAverage


def test_average_is_the_recursion_with_a_short_memory_at_the_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.6)
    expected = model[0].weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            model[0].weight.add_(1.0)
            model[1].num_batches_tracked.add_(1)
        average.update(model, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(average.tensors["0.weight"], expected)
    assert average.tensors["1.num_batches_tracked"] == 7


def test_applied_gives_the_weights_back():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.9)
    own = model.weight.detach().clone() + 1
    with torch.no_grad():
        model.weight.copy_(own)
    with average.applied(model):
        torch.testing.assert_close(model.weight, own - 1)
    assert torch.equal(model.weight, own)
    average.copy_to(model)
    torch.testing.assert_close(model.weight, own - 1)


def test_the_best_evaluation_is_kept_and_a_resume_takes_back_later_ones(tmp_path):
    from safetensors.torch import load_file

    from tools.finetuning.best import record_evaluation
    from tools.finetuning.model_files import save_model

    def record(step, ap):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, step)
        path = tmp_path / "best.safetensors"
        return record_evaluation(
            tmp_path, step, {"AP": ap}, lambda _: save_model(path, model, {}), score=lambda entry: entry["AP"]
        )

    def kept():
        return load_file(tmp_path / "best.safetensors")["weight"].item()

    assert [record(1, 5.0), record(2, 4.0), record(3, 5.0)] == [True, False, False] and kept() == 1
    assert record(4, 7.0) and kept() == 4
    assert record(2, 6.0) and kept() == 2  # resumed from update 1 on
    steps = [json.loads(line)["step"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [1, 2] and json.loads((tmp_path / "best.json").read_text())["step"] == 2
