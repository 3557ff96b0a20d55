"""tools/frozen/features.py: a full disk; the features: tests/tools/test_embed.py, test_probe.py."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pretrain.data.sources import ImageList
from tools.frozen import features
from tools.frozen.center_crop import CenterCrop


def test_the_space_is_taken_at_once_and_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file would end the process with a bus error, at the first write that finds no room."""
    file = tmp_path / "features.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(4096, 64))
    before = file.read_bytes()
    features._reserve(file)
    assert file.stat().st_blocks * 512 >= file.stat().st_size and file.read_bytes() == before

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as caught:
        features._reserve(file)
    assert caught.value.filename == str(file)


def test_the_count_of_a_file_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (32, 32), (50 + number, 9, 9)).save(tmp_path / f"{number}.png")
    images = ImageList(tmp_path, [f"{number}.png" for number in range(3)])
    fabric: Any = SimpleNamespace(
        device=torch.device("cpu"),
        world_size=1,
        global_rank=0,
        is_global_zero=True,
        to_device=lambda module: module,
        autocast=contextlib.nullcontext,
    )
    file = tmp_path / "partial" / "features.npy"
    file.parent.mkdir()
    file.with_suffix(".json").write_text(json.dumps({"images": 3}))

    def stopped(pixels: Tensor) -> Tensor:
        raise KeyboardInterrupt

    def means(pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    crop = CenterCrop(32, 1.0)
    with pytest.raises(KeyboardInterrupt):
        features.extract(fabric, stopped, (3,), images, crop, file, 0, "features")
    found = features.extract(fabric, means, (3,), images, crop, file, 0, "features")
    assert np.all(np.asarray(found) != 0), "rows that were never computed"
