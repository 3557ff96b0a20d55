"""The best of several evaluations."""

import json

from torch import nn


def test_the_best_evaluation_is_kept_and_a_resume_takes_back_later_ones(tmp_path):
    from safetensors.torch import load_file

    from tools.finetuning.best import is_recorded, record_evaluation
    from tools.finetuning.model_files import save_model

    def record(step, ap):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, step)
        path = tmp_path / "best.safetensors"
        return record_evaluation(
            tmp_path, step, {"AP": ap}, lambda: save_model(path, model, {}), score=lambda entry: entry["AP"]
        )

    def kept():
        return load_file(tmp_path / "best.safetensors")["weight"].item()

    assert [record(1, 5.0), record(2, 4.0), record(3, 5.0)] == [True, False, False] and kept() == 1
    assert record(4, 7.0) and kept() == 4
    assert record(2, 6.0) and kept() == 2  # resumed from step 1 on
    steps = [json.loads(line)["step"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [1, 2] and json.loads((tmp_path / "best.json").read_text())["step"] == 2
    assert is_recorded(tmp_path, 2) and not is_recorded(tmp_path, 4)
