"""What a machine has and what images measure: the facts that a plan is made from."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import statistics
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from pretrain.data.decode import UnreadableImage
from pretrain.data.sources import ImageList
from pretrain.training.control_groups import group_folders
from pretrain.training.evenly import evenly
from pretrain.training.processes import processes
from splitmask_backbones.errors import UserError

NEEDED = {"torch": "2.11", "torchvision": "0.26", "lightning-fabric": "2.5", "pillow": "11"}
"""Oldest versions that pre-training runs with, as in setup.cfg."""
NUM_SIZES = 1_000
"""Images whose headers are read, evenly spread."""
NUM_DECODED, LOOK_SECONDS = 200, 5.0
"""Images that a plan decodes, evenly spread, and how long it does so at most."""
logger = logging.getLogger(__name__)
_CGROUP = Path("/sys/fs/cgroup")


def check_versions(needed: dict[str, str] = NEEDED) -> None:
    """Raises ValueError for a library that is too old, with the command that replaces it."""
    for name, oldest in needed.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:  # may still be importable; if not, the import says so
            continue
        if _numbers(found) < _numbers(oldest):
            raise UserError(f"{name} {found} is too old, {oldest} or newer is needed: pip install '{name}>={oldest}'")


def _numbers(version: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


@dataclass(frozen=True)
class Sizes:
    """Sides of images in pixels: the median and the extremes of the shorter ones, and the mean area."""

    short_side: int
    smallest: int
    largest: int
    area: float


def sizes_of(images: ImageList) -> Sizes:
    """Returns what the headers of some images say, unreadable ones left out.

    Raises:
        ValueError: none of them can be read.
    """
    places = evenly(len(images), NUM_SIZES)
    found, reasons = [], []
    for index in places:
        try:
            found.append(images.size(index))
        except (OSError, ValueError, SyntaxError, UnreadableImage) as error:  # the check of the images counts them
            reasons.append(f"{images.names[index]}: {' '.join(str(error).split())[:300]}")
    if not found:
        raise UserError(
            f"--data: none of the {len(places)} images looked at can be read, the first one {reasons[0]}: repair them "
            "or choose others"
        )
    short = [min(size) for size in found]
    area = statistics.fmean(height * width for height, width in found)
    return Sizes(int(statistics.median(short)), min(short), max(short), area)


def warn_of_unreadable(images: ImageList, max_bad_fraction: float, seconds: float = LOOK_SECONDS) -> None:
    """Decodes some images to their end, evenly spread, and writes a `warning:` line where some cannot be read.

    A plan does not read all of them: the run does, and ends where more than a share of them is bad.

    Args:
        images: all that there are.
        max_bad_fraction: that share.
        seconds: after which no further image is read.
    """
    end, bad, looked = time.monotonic() + seconds, [], 0
    for index in evenly(len(images), NUM_DECODED):
        try:
            images.check(index)
        except (UnreadableImage, OSError) as error:
            bad.append(f"{images.names[index]}: {' '.join(str(error).split())[:300]}")
        looked += 1
        if time.monotonic() > end:
            break
    if bad:
        logger.warning(
            "%d of %d images looked at cannot be read, %s for one; a run checks all, and ends before its first step "
            "where they are more than %g %% (--max-bad-fraction)",
            len(bad),
            looked,
            bad[0],
            100 * max_bad_fraction,
        )


_LIMITS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Controller, limit and use of a control group, of version 2 and 1; without a limit 1 has a number above any memory."""
FILE_CACHE = ("inactive_file", "active_file")


def free_memory(device: torch.device, root: Path = _CGROUP) -> int:
    """Returns the bytes that this process may use: of its GPU, or its part of the host's, a container's limit included.

    Args:
        device: where the run computes.
        root: folder of the control group.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, IndexError):
        free = int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024
    for controller, limit_file, used_file in _LIMITS:
        for group in group_folders(root / controller, controller):
            with contextlib.suppress(OSError, ValueError):
                limit, used = ((group / name).read_text().strip() for name in (limit_file, used_file))
                used_bytes = int(used) - _file_cache(group / "memory.stat")
                free = free if limit == "max" else min(free, max(0, int(limit) - used_bytes))
    return free // processes().local_world_size


def _file_cache(stat: Path) -> int:
    """Returns the bytes of files that a control group keeps in memory: they count as used, and go when asked for."""
    with contextlib.suppress(OSError):
        kept = dict(line.split() for line in stat.read_text().splitlines())
        names = ("total_inactive_file", "total_active_file") if "total_inactive_file" in kept else FILE_CACHE
        return sum(int(kept.get(name, 0)) for name in names)
    return 0
