"""What is said of a path that is not there: how far it goes, and what is like it in that place. Free of torch."""

import difflib
import os
from pathlib import Path

from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import CHECKPOINTS, ENCODER

_NAMES_AT_MOST, _LISTED_AT_MOST = 10_000, 12
"""What a pre-training ends with, and where it keeps what it has learned until then."""


def check_path(path: str | os.PathLike[str], title: str = "") -> Path:
    """Returns a path with the user's home in place of `~`.

    Args:
        path: of a file or folder.
        title: what it is, such as the option that names it.

    Raises:
        ValueError: it is empty, which would be the current folder, or not there, with the nearest name where it ends,
            or cannot be opened.
    """
    if not str(path).strip():
        raise UserError(f"{title or 'a path'} is empty: name a file or folder")
    place, named = Path(path).expanduser(), f"{title} {path}".lstrip()
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{named} does not exist: {_where_it_ends(place.absolute())}") from None
    except OSError as error:
        raise UserError(f"{named} cannot be opened: {error.strerror}") from error
    return place


def check_file(path: str | os.PathLike[str], title: str) -> Path:
    """Returns the path of a file; raises ValueError as `check_path` does, and where it is something else."""
    place = check_path(path, title)
    if not place.is_file():
        raise UserError(f"{title} {path} is not a file: {'it is a folder, ' if place.is_dir() else ''}name a file")
    return place


def check_folder(path: str | os.PathLike[str], title: str) -> Path:
    """Returns the path of a folder; raises ValueError as `check_path` does, and where it is something else."""
    place = check_path(path, title)
    if not place.is_dir():
        raise UserError(f"{title} {path} is not a folder: name a folder")
    return place


def check_weights(path: str | os.PathLike[str], title: str = "weights file") -> Path:
    """Returns the path of an encoder file; tells a pre-training that has not finished from a wrong path.

    Raises:
        ValueError: it is not there, or not a file.
    """
    place = Path(path).expanduser()
    if not place.exists() and place.name == ENCODER and (place.parent / CHECKPOINTS).is_dir():
        raise UserError(
            f"{title} {path} does not exist: the run in {place.parent} has not written it: end a pre-training with "
            f"--resume, or take what it has learned so far: python tools/convert.py {place.parent} FILE"
        )
    place = check_path(path, title)
    if not place.is_file():
        raise UserError(
            f"{title} {path} is not a file: name the encoder.safetensors in it, or turn a folder of Hugging Face or "
            "timm into one with tools/convert.py"
        )
    return place


def _where_it_ends(path: Path) -> str:
    """Returns how far an absolute path goes."""
    found, missing = path.parent, path.name
    while not found.exists():
        found, missing = found.parent, found.name
    if (found / missing).is_symlink():
        return f"{found / missing} is a link to {os.readlink(found / missing)}, which is not there"
    if not found.is_dir():
        return f"{found} is a file"
    try:
        names = [name for name in os.listdir(found)[:_NAMES_AT_MOST] if not name.startswith(".")]
    except OSError:
        names = []
    if not names:
        return f"the folder {found} is empty, check the path"
    alike = difflib.get_close_matches(missing, names, n=1)
    meant = f", did you mean '{alike[0]}'?" if alike else ""
    listed = f"; it holds {', '.join(sorted(names))}" if len(names) <= _LISTED_AT_MOST else ""
    return f"in {found} there is no '{missing}'{meant}{listed}" + ("" if meant or listed else ", check the path")
