"""What a run says while it works, where no terminal shows a bar."""

import os
import re
from contextlib import suppress

import pytest

from pretrain.training import progress
from pretrain.training.progress import Screen


def test_a_line_per_logged_step_has_the_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.ProgressLine(total_steps=10, start_step=2, title="train")
    now[0] = 104.0
    entry = {"step": 4, "epoch": 0.5, "images": 32, "loss": 0.12345, "accuracy": None}
    line.log({**entry, "lr": 1e-3, "grad_norm": 2.0, "images_per_second": 8.0}, data_share=0.25)
    said = capsys.readouterr().out
    assert (
        said == "step 4/10  loss 0.1235  8.0 images/s  data wait 25 %  left 00:00:12\n"
    )  # two steps took four seconds


def test_all_items_come_and_long_work_is_told(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def slow():
        for item in range(4):
            now[0] += 6.0
            yield item

    assert list(progress.tracked(slow(), 4, "evaluate")) == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert re.findall(r"evaluate (\d)/4  left ([\d:]+)", said) == [("2", "00:00:12"), ("4", "00:00:00")]
    assert list(progress.tracked(slow(), 4, "evaluate", shown=False)) == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""


def test_days_that_are_left_are_hours(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = progress.ProgressLine(total_steps=27, start_step=0, title="train")
    now[0] = 3600.0 + 1
    line.log({"step": 1, "images_per_second": 8.0}, data_share=0.0)
    assert capsys.readouterr().out.endswith("left 26:00:26\n")


def test_a_reader_that_has_gone_is_an_error_and_no_silent_exit():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with pytest.raises(BrokenPipeError):
        Screen(file=stream).print("a line")
    with suppress(BrokenPipeError):
        stream.close()
