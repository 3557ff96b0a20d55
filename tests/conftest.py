"""What all tests share: one thread, skips with a reason, and a folder of small pictures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before torch is imported, and for the tools that tests start: several workers of pytest share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

# Tools begin with `import _path`, which lies beside them; afterwards sys.path is as in a tool.
sys.path.insert(0, str(ROOT / "tools"))
import _path  # noqa: E402, F401

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
_of_torch: dict[str, Any] = {}
"""What torch says of the GPUs of this machine: `is_available` and `device_count`."""


def pytest_configure(config: pytest.Config) -> None:
    """Keeps torch on one thread: sums are the same on every machine, and workers do not fight for cores."""
    import torch

    from splitmask_backbones._yapf_cache import import_yapf

    import_yapf()  # the workers of pytest start together
    torch.set_num_threads(1)
    for name in ("is_available", "device_count"):
        _of_torch[name] = getattr(torch.cuda, name)
        _of_torch[name]()  # with all GPUs in sight: the first answer is the driver's for good
    if not config.getoption("numprocesses", None):  # what starts workers hides nothing from them
        _show_gpus(False)


def _show_gpus(shown: bool) -> None:
    """Shows the GPUs to this process and to what it starts, or hides them."""
    import torch

    for name, answer in (("is_available", False), ("device_count", 0)):
        setattr(torch.cuda, name, _of_torch[name] if shown else lambda answer=answer: answer)
    if shown and _VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = (_VISIBLE or "") if shown else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Shows GPUs to tests with the mark `gpu` alone, and seeds torch: a test draws the same in any order of tests.

    The bytes of all other tests are those of a CPU, on every machine.
    """
    import torch

    _show_gpus(item.get_closest_marker("gpu") is not None)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, and says why."""
    no_gpu = None if _of_torch["is_available"]() else "no CUDA device"
    no_detectron2 = None if find_spec("detectron2") else "detectron2 is not installed (PyPI does not hold it)"
    for item in items:
        for marker, reason in (("gpu", no_gpu), ("detectron2", no_detectron2)):
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Takes back what a tool that ran in this process did to the project's loggers: other tests read them."""
    yield
    for name in ("pretrain", "splitmask_backbones", "tools"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def algorithms_as_they_were() -> Iterator[None]:
    """Takes back what `--deterministic` sets for the whole process."""
    import torch

    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Returns a folder of 12 RGB pictures of different sizes, some in a folder of their own."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(12):
        height, width = 40 + 7 * index, 90 - 3 * index
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        name = f"{index:02d}.{'png' if index % 3 == 0 else 'jpg'}"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(
            folder / ("more" if index % 4 == 3 else ".") / name
        )
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Returns the folder of real data beside the checkout; skips where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: ../shared/data is missing")
    return folder
