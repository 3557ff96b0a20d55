"""metrics.jsonl and monitor.jsonl: strict JSON, each step once, also after a resume."""

import json

import pytest

from pretrain.training.metrics import JsonLines, MetricsLog, training_seconds
from splitmask_backbones.run_files import METRICS_LOG, MONITOR_LOG


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_came_after_the_resumed_step_is_taken_out(tmp_path):
    path = tmp_path / METRICS_LOG
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 8, "los')
    file = JsonLines(path, start_step=4)
    file.write({"step": 5, "loss": float("nan")})
    file.close()
    assert lines(path) == [{"step": 2}, {"step": 4}, {"step": 5, "loss": None}]


def test_the_seconds_of_a_training_add_up(tmp_path):
    file = tmp_path / METRICS_LOG
    assert training_seconds(tmp_path) is None, "nothing was trained"
    # 80 images at 20 a second, then 160 at 10; a line that a kill cut off, its images in the next one's.
    file.write_text(
        '{"images": 80, "images_per_second": 20.0}\n{"images": 160, "ima\n{"images": 240, "images_per_second": 10.0}\n'
    )
    assert training_seconds(tmp_path) == pytest.approx(4.0 + 16.0)
    file.write_text('{"images": 80, "images_per_second": null}\n')
    assert training_seconds(tmp_path) is None


def test_a_log_writes_files_and_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, 0)
    log.write({"step": 1, "epoch": 0.5, "images": 8, "loss": 2.0, "lr": None}, {"data_wait_share": 0.25})
    log.write_monitor({"step": 1, "epoch": 0.5, "images": 8, "effective_rank": 3.0})
    log.scalars("val", {"mIoU": 40.0, "undefined": None}, 1)
    log.close()
    assert lines(tmp_path / METRICS_LOG) == [{"step": 1, "epoch": 0.5, "images": 8, "loss": 2.0, "lr": None}]
    assert lines(tmp_path / MONITOR_LOG)[0]["effective_rank"] == 3.0
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == {
        "train/loss": 2.0, "train/data_wait_share": 0.25, "monitor/effective_rank": 3.0, "val/mIoU": 40.0,
    }  # fmt: skip
