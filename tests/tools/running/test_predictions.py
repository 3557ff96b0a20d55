"""Pictures to look at: numbered copies, one job per run, found again."""

from __future__ import annotations

from pathlib import Path

from tools.running.job import copy_numbered, drawn, prediction_job


def test_pictures_of_one_name_are_kept_apart_and_drawn_once(tmp_path: Path) -> None:
    sources = [tmp_path / "a" / "x.JPG", tmp_path / "b" / "x.png"]
    for number, source in enumerate(sources):
        source.parent.mkdir()
        source.write_bytes(bytes([number]))
    files = copy_numbered(sources, tmp_path / "pictures")
    assert [file.name for file in files] == ["0.jpg", "1.png"]
    assert [file.read_bytes() for file in files] == [b"\0", b"\1"]
    run = tmp_path / "run"
    job = prediction_job("run", "train_det.py", ("c.py",), run, tmp_path / "pictures", len(files))
    assert job.argv == ("c.py", "--predict", str(tmp_path / "pictures")) and job.needs == ("run",)
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / "0.png").touch()
    assert not job.done, "interrupted half-way"
    (run / "predictions" / "1.png").touch()
    assert job.done and drawn(run, files) == [run / "predictions" / "0.png", run / "predictions" / "1.png"]
