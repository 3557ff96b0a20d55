"""What a machine has: versions, memory, disk; sides of images."""

from __future__ import annotations

import configparser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.sources import open_source
from pretrain.training.shortage import free_disk
from tests.helpers.paths import ROOT
from tools.cli import start_log
from tools.pretraining import machine
from tools.pretraining.machine import NEEDED, check_versions, free_memory, sizes_of, warn_of_unreadable


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["pretrain"]
    assert all(f"{name}>={oldest}" in lines for name, oldest in NEEDED.items())
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.9.1+cu128")
    check_versions({"torch": "2.9", "other": "2.9.1"})
    with pytest.raises(
        ValueError, match=r"torch 2\.9\.1\+cu128 is too old, 2\.11 or newer .* pip install 'torch>=2\.11'"
    ):
        check_versions({"torch": "2.11"})


def test_sizes(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(10, 20), (40, 30), (50, 60)]):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = sizes_of(open_source(tmp_path))
    assert (found.short_side, found.smallest, found.largest) == (30, 10, 50)
    assert found.area == pytest.approx((200 + 1200 + 3000) / 3)
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(ValueError, match="none of the 1 images"):
        sizes_of(open_source(tmp_path))


def test_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory(torch.device("cpu"), tmp_path)  # no control group
    assert 0 < free < 100e12
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory(torch.device("cpu"), tmp_path) == 2_000_000
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 900000\ninactive_file 500000\nactive_file 300000\n")
    assert free_memory(torch.device("cpu"), tmp_path) == 2_800_000  # what is read of files goes when asked for
    (tmp_path / "v1/memory").mkdir(parents=True)
    (tmp_path / "v1/memory/memory.limit_in_bytes").write_text("3000000\n")
    (tmp_path / "v1/memory/memory.usage_in_bytes").write_text("1000000\n")
    assert free_memory(torch.device("cpu"), tmp_path / "v1") == 2_000_000
    (tmp_path / "v1/memory/memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000\n")
    assert free_memory(torch.device("cpu"), tmp_path / "v1") == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu"), tmp_path) > 2_000_000
    assert free_disk(tmp_path / "not/there/yet") > 0


def test_images_that_end_too_early_are_told_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    start_log()  # as the tool does
    warn_of_unreadable(open_source(tmp_path), 0.01)
    assert not capsys.readouterr().err
    for number in (2, 4):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:-1500])
    warn_of_unreadable(open_source(tmp_path), 0.01)
    told = capsys.readouterr().err
    assert told.startswith("warning: 2 of 6 images looked at cannot be read, 2.jpg: ") and told.count("\n") == 1
    assert "more than 1 % (--max-bad-fraction)" in told
    warn_of_unreadable(open_source(tmp_path), 0.01, seconds=0)
    assert not capsys.readouterr().err, "the first one alone was looked at"
