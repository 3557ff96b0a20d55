"""The plan in words: what is left is counted, what is done is not."""

from __future__ import annotations

from pathlib import Path

from tools.reproduction.make import table_estimate
from tools.running.job import Job


def test_the_estimate_counts_what_is_left(tmp_path: Path) -> None:
    jobs = [
        Job("a", "pretrain.py", (), tmp_path / "a", "done", operations=7.2e15, disk=2e9),
        Job("b", "train_det.py", (), tmp_path / "b", "done", operations=3.6e15, disk=1e9),
    ]
    lines = table_estimate(jobs, tmp_path, tflops=1.0)
    assert lines[0] == "2 of 2 jobs to do"
    assert lines[1].startswith(
        "GPU hours: about 3.0 (pretrain 2.0, train_det 1.0), from counted operations at --tflops 1 "
    )
    assert lines[2].startswith("disk: about 3.0 GB")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "done").write_text("")
    assert table_estimate(jobs, tmp_path, tflops=1.0)[1].startswith("GPU hours: about 1.0 (train_det 1.0)")
    assert "34.0 hours on 16 GPUs" in table_estimate(jobs, tmp_path, tflops=None)[1]
    probes = [
        Job(name, "probe.py", (), tmp_path / name, "done", scratch=size) for name, size in (("d", 1e9), ("e", 2e9))
    ]
    assert table_estimate(probes, tmp_path, None)[2].startswith("disk: about 2.0 GB"), "one runs after the other"
    huge = [Job("c", "pretrain.py", (), tmp_path / "c", "done", disk=1e18)]
    assert "NOT ENOUGH" in table_estimate(huge, tmp_path / "not" / "there", None)[2]
