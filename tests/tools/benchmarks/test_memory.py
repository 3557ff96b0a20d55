"""The peak of a call."""

import mmap

import numpy as np
import pytest

from tools.benchmarks.memory import peak_of

MB = 1 << 20


def touch() -> None:
    with mmap.mmap(-1, 64 * MB) as pages:  # new ones, and not what others have given back
        pages.write(b"x" * (64 * MB))


def test_what_a_call_holds_at_its_peak_counts_and_not_what_was_there_before():
    kept = np.ones(8 * MB, np.uint8)
    found = peak_of(touch, "cpu")
    if found is None:
        pytest.skip("this system has no /proc/self/clear_refs")
    assert 60 * MB < found < 140 * MB and kept.all()
