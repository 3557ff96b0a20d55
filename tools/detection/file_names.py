"""File names of a COCO file that fit no image as they stand: Windows paths, prefixes and URLs."""

import os
import re
from collections import Counter
from itertools import takewhile
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pretrain.data.sources import SUFFIXES
from pretrain.data.walk import walk
from splitmask_backbones.errors import UserError
from tools.detection.records import ImageRecord

_FRAME = re.compile(r"[a-z]{0,6}[-_ ]?\d{2,6}\.\w+")  # the same in each video: 0000.jpg, frame_12.png
_HASH = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts one before the name of an upload


def repair_file_names(records: list[ImageRecord], folder: Path) -> list[tuple[str, str]]:
    """Names the file of each image whose `file_name` is none, where exactly one file fits; returns (old, new) names.

    The file with the most folders of the name in common fits; capitals do not matter. A file is one image's only:
    where two images claim it, or it has its own already, the names stay as they are.

    Args:
        records: changed in place.
        folder: the images', searched with its subfolders, and only if a file is missing.
    """
    missing = [record for record in records if not _exists(folder, record.file_name)]
    if not missing:
        return []
    files = _files_by_name(folder)
    found = [(record, _best_file(record.file_name, files)) for record in missing]
    claims = Counter(os.path.normpath(record.file_name) for record in records)
    claims.update(os.path.normpath(file) for _, file in found if file is not None)
    repaired = []
    for record, file in found:
        if file is not None and claims[os.path.normpath(file)] == 1:
            repaired.append((record.file_name, file))
            record.file_name = file
    return repaired


def _exists(folder: Path, name: str) -> bool:
    try:
        return os.path.exists(os.path.join(folder, name))
    except ValueError:  # a zero byte
        return False


def _files_by_name(folder: Path) -> dict[str, list[str]]:
    """Returns the images below a folder as relative posix paths, by their last part in small letters."""
    files: dict[str, list[str]] = {}
    try:
        paths = walk(folder, lambda name: os.path.splitext(name)[1].lower() in SUFFIXES)[0]
    except UserError:  # the images that are missing are told, and count against the limit
        return {}
    for path in paths:
        files.setdefault(path.rpartition("/")[2].lower(), []).append(path)
    return files


def _best_file(name: str, files: dict[str, list[str]]) -> str | None:
    for path in _readings(name):
        parts = [part for part in re.split(r"[\\/]+", path.lower()) if part]
        candidates = files.get(parts[-1], []) if parts else []
        if not candidates and parts and _HASH.match(parts[-1]):
            parts[-1] = _HASH.sub("", parts[-1], count=1)
            candidates = files.get(parts[-1], [])
        if not candidates:
            continue
        common = [_common_end(parts, file.lower().split("/")) for file in candidates]
        best = [file for file, count in zip(candidates, common, strict=True) if count == max(common)]
        if len(best) != 1 or max(common) == 1 and _is_another(name, best[0]):
            return None
        return best[0]
    return None


def _is_another(name: str, file: str) -> bool:
    """Returns whether a relative name and a file, in folders of other names, are numbered as in many folders.

    That is video1/0000.jpg and video2/0000.jpg; absolute paths and URLs are those of another machine.
    """
    parts = re.split(r"[\\/]+", name)
    is_relative = len(parts) > 1 and parts[0] not in ("", ".") and ":" not in parts[0]
    return is_relative and "/" in file and _FRAME.fullmatch(parts[-1].lower()) is not None


def _common_end(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _readings(name: str) -> list[str]:
    """Returns what a name may mean as a path: itself, and that within a URL."""
    readings = [name]
    if "://" in name or "?" in name:
        try:
            parts = urlsplit(name)
        except ValueError:
            return readings
        readings += [*parse_qs(parts.query).get("d", []), unquote(parts.path)]  # Label Studio: /data/local-files/?d=
    elif "%" in name:
        readings.append(unquote(name))
    return readings
