"""Evaluations of a training: which one counts, which are lines, and what goes to TensorBoard."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from splitmask_backbones.run_files import BEST_MODEL
from tools.finetuning.best import EVALUATIONS
from tools.finetuning.evaluations import Evaluations


def evaluations(folder: Any, *, eval_every: int | None, final_differs: bool, is_main: bool = True) -> Evaluations:
    made: list[bool] = []

    def measure(fabric: Any, model: Any, folder: Any, final: bool) -> dict[str, Any] | None:
        made.append(final)
        return {"mIoU": 10.0 + final, "per_class": {"road": 1.0}} if is_main else None

    task: Any = SimpleNamespace(
        recipe=SimpleNamespace(eval_every=eval_every),
        final_differs=final_differs,
        measure=measure,
        score=lambda entry: entry["mIoU"],
        made=made,
    )
    run: Any = SimpleNamespace(path=folder, is_main=is_main)
    fabric: Any = None
    return Evaluations(task, fabric, run, nn.Linear(1, 1), {"command": "train_seg"})


@pytest.mark.parametrize(
    ("eval_every", "final_differs", "made", "lines", "score"),
    [
        (None, False, [False], 0, 10),
        (None, True, [True], 0, 11),
        (2, False, [False], 1, 10),
        (2, True, [False, True], 1, 11),
    ],
)
def test_the_evaluation_that_counts(tmp_path, eval_every, final_differs, made, lines, score):
    found = evaluations(tmp_path, eval_every=eval_every, final_differs=final_differs)
    assert found.at_the_end(7) == {"mIoU": score, "per_class": {"road": 1.0}}
    assert found.task.made == made
    record = tmp_path / EVALUATIONS
    steps = [json.loads(line)["step"] for line in record.read_text().splitlines()] if record.exists() else []
    assert steps == [7] * lines
    assert (tmp_path / BEST_MODEL).exists() == bool(lines)


def test_scalars_are_flat_and_of_no_single_class(tmp_path):
    assert evaluations(tmp_path, eval_every=2, final_differs=False).scalars(2) == {"mIoU": 10.0}


def test_other_processes_write_nothing(tmp_path):
    found = evaluations(tmp_path, eval_every=2, final_differs=False, is_main=False)
    assert found.scalars(2) == {}
    assert found.at_the_end(4) is None
    assert list(tmp_path.iterdir()) == []
