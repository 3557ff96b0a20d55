"""The demo's table and curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.demos import plan as report
from tools.finetuning import plots


def test_curves_and_tables(tmp_path: Path) -> None:
    lines = ['{"step": 10, "loss": 2.0}', '{"step": 20, "loss": null}', '{"step": 30, "loss": 1.0}', '{"step": 4']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert plots.curve(plots.read_metrics(tmp_path / "metrics.jsonl"), "loss") == ([10, 30], [2.0, 1.0])
    assert plots.read_metrics(tmp_path / "nothing.jsonl") == []
    assert plots.show(None) == "undefined"
    assert plots.markdown_table(["a", "b"], [["x", "1.0"]]) == "| a | b |\n| :--- | ---: |\n| x | 1.0 |\n"
    plots.save_curves({"loss": {"one": ([1, 2], [2.0, 1.0])}, "empty": {}}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_table_holds_scores_and_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"bbox": {"AP": 1.25}, "segm": {"AP": None}}
    for start in ("none", "splitmask"):
        (tmp_path / f"det_{start}").mkdir()
        (tmp_path / f"det_{start}" / "results.json").write_text(json.dumps(results))
    seconds = {"pretrain": 60.4, "det_none": 1.0, "det_splitmask": 2.0}
    report.write_table(tmp_path, lambda name: seconds.get(name, 0.0), "no segmentation: too many classes")
    text = (tmp_path / "table.md").read_text()
    assert "| random init | 1.2 | undefined | - | 0 | 1 |" in text
    assert "| SplitMask | 1.2 | undefined | - | 60 | 2 |" in text
    assert text.endswith("small difference. No segmentation: too many classes.\n")
    assert "table.md" in capsys.readouterr().out
