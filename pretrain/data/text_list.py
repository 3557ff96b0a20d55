"""The image names in a text list, one path per line."""

import os
from pathlib import Path

from splitmask_backbones.errors import UserError


def read_text_list(path: Path) -> tuple[Path, list[str], tuple[str, ...]]:
    """Returns the folder, the sorted names relative to it, each once, and notes.

    A line is a path, relative to the list's folder or absolute; blank lines and lines that start with ``#`` are
    skipped; a byte-order mark and Windows line ends do no harm. The folder is the list's own if all images lie below
    it, else the deepest one that holds them all, so that names stay the same when list and images move together.

    Raises:
        UserError: not a text, no path in it, or a line that names no existing file (with the line's number).
    """
    raw = path.read_bytes()
    if b"\0" in raw:
        raise UserError(f"--data {path} is neither an image folder nor a UTF-8 text list: give one path per line")
    # Bytes that are not UTF-8 are file names of an older system: kept as they are.
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    base = os.path.abspath(path.parent)
    files: list[str] = []
    missing: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        file = os.path.abspath(os.path.join(base, os.path.expanduser(name)))
        if os.path.isdir(file):
            raise UserError(
                f"--data {path}, line {number}: {name} is a folder: name image files, or give the folder as --data"
            )
        if not os.path.lexists(file):
            missing.append((number, name))
        files.append(file)
    if not files:
        raise UserError(f"--data {path} names no image: write one path per line, relative to {base} or absolute")
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
