"""The jobs of a demo are accepted by their tools; own folders become inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.plans import check
from tools.demo_data import DemoData, make_demo_data
from tools.demos.inputs import open_folder, own_inputs
from tools.demos.plan import demo_jobs


@pytest.mark.parametrize("segmentation", [True, False])
def test_the_jobs_of_a_small_folder(tmp_path: Path, segmentation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not segmentation:
        monkeypatch.setattr("tools.demos.inputs.MAX_CLASSES", 3)
    data, output = make_demo_data(tmp_path / "data", DemoData(10, 3, 1, img_size=96)), tmp_path / "out"
    inputs = own_inputs(open_folder(str(data / "coco"), output / "data"), output / "data")
    assert inputs.pretrain[-4:-2] == ["--batch-size", "10"] and inputs.pretrain[-2] == "--vocab-size"
    assert len(inputs.pictures) == 3 and len(inputs.token_images) == 10
    assert (inputs.note is None) == segmentation
    jobs = demo_jobs(output, inputs, {"pretrain": 3, "det": None, "seg": 2}, 0, 1)
    heads = ["det", "seg"] if segmentation else ["det"]
    trained = [f"{head}_{start}" for head in heads for start in ("none", "splitmask")]
    assert [job.name for job in jobs] == ["pretrain", *trained, *(f"{name}/predict" for name in trained)]
    for job in jobs:
        check(job)
        assert ("--steps" in job.argv) == (job.name in ("pretrain", "seg_none", "seg_splitmask"))
    assert sorted(path.name for path in (output / "data" / "pictures").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
