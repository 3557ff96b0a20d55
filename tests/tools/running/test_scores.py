"""Scores out of results.json."""

import json
from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tools.running.scores import read_scores


def test_scores_that_are_undefined_or_absent_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"bbox": {"AP": 12, "AP50": 30.0}, "segm": {"AP": None}}))
    assert read_scores("train_det", file) == {"box AP": 12.0}
    file.write_text(json.dumps({"bbox": {"AP": 12.0}}))
    assert read_scores("train_det", file) == {"box AP": 12.0}
    file.write_text('{"mIoU": NaN}')
    assert read_scores("train_seg", file) == {}


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"results.json is damaged \(.*\): remove its folder"):
        read_scores("train_cls", file)
