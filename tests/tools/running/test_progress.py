"""What is shown while a plan runs: durations, and how far a training is."""

from __future__ import annotations

from pathlib import Path

from tools.running.job import last_step
from tools.running.progress import duration


def test_durations_and_progress(tmp_path: Path) -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7260)] == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]
    assert last_step(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    assert last_step(tmp_path) == 20
