"""The image names in a COCO json, without its annotations."""

import json
import os
import posixpath
from pathlib import Path

from splitmask_backbones.errors import UserError


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
