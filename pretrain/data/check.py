"""Images before a run starts: every file of a list is decoded once, and too many unreadable ones stop the run."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.decode import UnreadableImage
from pretrain.data.pool import results_of
from pretrain.data.remarks import remarks
from pretrain.data.sources import ImageList, printable
from pretrain.training.progress import tracked
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically

logger = logging.getLogger(__name__)

MAX_NAMED = 20
"""Unreadable images named on the screen; the report file names all."""


@dataclass(frozen=True)
class BadImage:
    """An unreadable image: its name in the list and the reason."""

    name: str
    reason: str


def check_images(images: ImageList, workers: int = 0) -> list[BadImage]:
    """Returns the unreadable ones, in the order of the list; decodes every image to its end.

    Args:
        images: what is checked.
        workers: processes that decode; 0 and 1 decode in this one. The result is the same. Shows progress with the
            time left.
    """
    for remark in remarks(images):
        logger.info("%s", printable(remark))
    with results_of(_Reason(images), len(images), workers) as reasons:
        found = zip(images.names, tracked(reasons, len(images), "checking images"), strict=True)
        return [BadImage(name, reason) for name, reason in found if reason is not None]


@dataclass(frozen=True)
class _Reason:
    """Returns why an image cannot be read, None if it can."""

    images: ImageList

    def __call__(self, index: int) -> str | None:
        try:
            self.images.check(index)
        except UnreadableImage as error:
            return str(error)
        return None


def enforce_bad_limit(
    num_files: int,
    bad: Sequence[BadImage],
    max_fraction: float,
    report_path: str | Path,
    root: str | os.PathLike[str] | None = None,
) -> None:
    """Reports unreadable images and stops the run when there are too many; does nothing when there is none.

    Writes all of them to ``report_path`` (``path<TAB>reason`` per line; tabs, line ends, backslashes and bytes that are
    not UTF-8 in a path are written as in ``a\\tb``, ``\\xff``) and logs one warning for each of the first 20.

    Args:
        num_files: all files found, the unreadable ones included.
        bad: from ``check_images``.
        max_fraction: share of ``num_files`` in [0, 1] that may be unreadable (``--max-bad-fraction``).
        report_path: file to write, ``bad_images.txt`` in the run's folder.
        root: put before the names, so that the report holds whole paths.

    Raises:
        UserError: more than ``max_fraction * num_files`` are unreadable, or none is left.
    """
    if not bad:
        return
    shown = [printable(item.name if root is None else os.path.join(root, item.name)) for item in bad]
    write_atomically(
        report_path, "".join(f"{path}\t{item.reason}\n" for path, item in zip(shown, bad, strict=True)).encode()
    )
    for path, item in zip(shown[:MAX_NAMED], bad, strict=False):
        logger.warning("unreadable image %s: %s", path, item.reason)
    if len(bad) > MAX_NAMED:
        logger.warning("%d more unreadable images, listed in %s", len(bad) - MAX_NAMED, report_path)
    first = f"the first: {shown[0]}: {bad[0].reason}; all are named in {report_path}"
    if len(bad) >= num_files:
        raise UserError(f"none of the {num_files} images can be read; {first}; repair them or choose other images")
    # A tolerance of rounding only: 0.07 * 100 is 7.000000000000001.
    if len(bad) > max_fraction * num_files + 1e-9:
        share = 100 * len(bad) / num_files
        raise UserError(
            f"{len(bad)} of {num_files} images ({share:.3g} %) cannot be read, more than the limit of "
            f"{100 * max_fraction:.3g} %; {first}; repair or remove them, or raise --max-bad-fraction"
        )
