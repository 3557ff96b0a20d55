"""The image names in a COCO json (without its annotations) and in a text list (one path per line)."""

import json
import os
import posixpath
from pathlib import Path

from splitmask_backbones.errors import UserError, nearest


def coco_names(path: Path, root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns the sorted file names (relative to ``root``) of ``images[].file_name``, each once, and notes.

    Raises:
        UserError: not JSON, no list ``images``, an entry without a file name, or not one of the files in ``root``.
    """
    content = _load(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"--data {path} has no list 'images': it is not a COCO json, give one or an image folder")
    if not entries:
        raise UserError(f"--data {path}: its list 'images' is empty, give a COCO json with images")
    names = set()
    for index, entry in enumerate(entries):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"--data {path}: images[{index}] has no 'file_name': add the image's path relative to --images"
            )
        names.add(posixpath.normpath(name))
    if not any(os.path.exists(os.path.join(root, name)) for name in names if "\0" not in name):
        first = posixpath.normpath(entries[0]["file_name"])
        raise UserError(
            f"--images {root} has none of the {len(names)} images that {path} names, "
            f"for example {os.path.join(root, first)}: give the folder that the file names are relative to"
        )
    repeated = len(entries) - len(names)
    return sorted(names), (f"{repeated} repeated names skipped",) if repeated else ()


def _load(path: Path) -> object:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(
            f"--data {path} is not valid JSON ({where}: {error.msg}): repair or download it again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--data {path} is not valid JSON in UTF-8 ({error}): repair or download it again") from error


def read_lines(path: Path, option: str = "") -> list[tuple[int, str]]:
    """Returns number (from 1) and text of the lines of a file that are neither blank nor comments.

    Comments begin with `#`, unless they name a file beside the list. A byte-order mark, Windows line ends and spaces
    within a line do no harm. Bytes that are not UTF-8 are names of an older system: kept as they are.

    Args:
        option: that names the file, in front of what is said.

    Raises:
        UserError: no such file, not a text, or nothing in it.
    """
    what = f"{option} {path}".strip() if option else f"list {path}"
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.txt")] if path.parent.is_dir() else []
        raise UserError(f"{what} does not exist: {nearest(path.name, near) if near else 'check the path'}")
    raw = path.read_bytes()
    if b"\0" in raw:
        raise UserError(f"{what} is neither an image folder nor a UTF-8 text list: it needs one image a line")
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not _is_comment(line, path.parent)]
    if not lines:
        raise UserError(f"{what} names no image (it is empty): write one a line")
    return lines


def _is_comment(line: str, folder: Path) -> bool:
    return line.startswith("#") and not os.path.lexists(os.path.join(folder, line))


def read_text_list(path: Path) -> tuple[Path, list[str], tuple[str, ...]]:
    """Returns the folder, the sorted names relative to it, each once, and notes.

    A line is a path, relative to the list's folder or absolute. The folder is the list's own if all images lie below
    it, else the deepest one that holds them all, so that names stay the same when list and images move together.

    Raises:
        UserError: not a text, no path in it, or a line that names no existing file (with the line's number).
    """
    base = os.path.abspath(path.parent)
    files: list[str] = []
    missing: list[tuple[int, str]] = []
    for number, name in read_lines(path, "--data"):
        file = os.path.abspath(os.path.join(base, os.path.expanduser(name)))
        if os.path.isdir(file):
            raise UserError(
                f"--data {path}, line {number}: {name} is a folder: name image files, or give the folder as --data"
            )
        if not os.path.lexists(file):
            missing.append((number, name))
        files.append(file)
    if missing:
        number, name = missing[0]
        more = f" (and {len(missing) - 1} more lines)" if len(missing) > 1 else ""
        raise UserError(
            f"--data {path}, line {number}: {name} does not exist{more}: paths are relative to {base}, or absolute"
        )
    below = all(file.startswith(os.path.join(base, "")) for file in files)
    root = base if below else os.path.commonpath([os.path.dirname(file) for file in files])
    names = {Path(os.path.relpath(file, root)).as_posix() for file in files}
    repeated = len(files) - len(names)
    return Path(root), sorted(names), (f"{repeated} repeated lines skipped",) if repeated else ()
