"""tools/frozen/features.py: a full disk; the features: tests/tools/test_embed.py, test_probe.py."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from tools.frozen import features


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
