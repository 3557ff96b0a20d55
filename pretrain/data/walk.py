"""The files below a root of images, and what was not looked at."""

import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError, first_few
from splitmask_backbones.run_files import CONFIG

MAX_LISTED = 8


def walk(root: Path, wanted: Callable[[str], bool], option: str = "--data") -> tuple[list[str], tuple[str, ...]]:
    """Returns the sorted names of the wanted files below ``root``, and notes on what was skipped.

    Hidden files and folders are skipped (macOS' ``._x.jpg``, ``.ipynb_checkpoints`` and thumbnail caches are not the
    user's), and so are folders of runs of this project, which hold drawings of the images: an `--output` within the
    images. Linked folders are not followed (they may form loops). Links to files are taken, also broken ones: those
    count as unreadable later.

    Args:
        wanted: whether a file is, by its name without folders.
        option: that errors name.

    Raises:
        UserError: a folder cannot be read.
    """
    names: list[str] = []
    skipped = {"hidden entries": 0, "linked folders": 0, "entries that are not regular files": 0, "other files": 0}
    skipped |= {"folders of runs": 0}
    links: list[str] = []
    runs: list[str] = []
    suffixes: Counter[str] = Counter()
    stack = [""]
    while stack:
        prefix = stack.pop()
        try:
            entries = list(os.scandir(os.path.join(root, prefix)))
        except OSError as error:
            raise UserError(f"{option}: the folder {root / prefix} cannot be read: {error.strerror}") from error
        if prefix and "command" in read_object(root / prefix / CONFIG):
            skipped["folders of runs"] += 1
            runs.append(prefix.rstrip("/"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                skipped["hidden entries"] += 1
            elif entry.is_dir(follow_symlinks=False):
                stack.append(f"{prefix}{entry.name}/")
            elif entry.is_symlink() and stat.S_ISDIR(_mode(entry.path)):
                skipped["linked folders"] += 1
                links.append(prefix + entry.name)
            elif not wanted(entry.name):
                skipped["other files"] += 1
                suffixes[os.path.splitext(entry.name)[1].lower()] += 1
            elif stat.S_ISREG(mode := _mode(entry.path)) or not mode:
                names.append(prefix + entry.name)
            else:
                skipped["entries that are not regular files"] += 1
    others = _listed(sorted(set(suffixes) - {""}), "suffixes found: ")
    listed = {"linked folders": _listed(sorted(links)), "other files": others, "folders of runs": _listed(sorted(runs))}
    notes = (f"{count} {what} skipped{listed.get(what, '')}" for what, count in skipped.items() if count)
    return sorted(names), tuple(notes)


def _listed(names: list[str], title: str = "") -> str:
    return f" ({title}{first_few(names, MAX_LISTED)})" if names else ""


def _mode(path: str) -> int:
    """Returns the mode of what ``path`` points to, 0 for a broken or circular link."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0
