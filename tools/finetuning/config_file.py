"""The file of a config that is named on a command line. Free of torch."""

from pathlib import Path

from splitmask_backbones.errors import UserError, nearest


def config_file(name: str, folder: Path) -> Path:
    """Returns the file for `CONFIG`: a path, or a file of the project's `folder` with or without folder and suffix.

    Raises:
        ValueError: no such file, with the nearest one of the folder.
    """
    for path in (Path(name), folder.parent / name, folder / name, folder / f"{name}.py"):
        if path.is_file():
            return path
    raise UserError(f"config {name} does not exist: {nearest(name, config_names(folder))}")


def config_names(folder: Path) -> list[str]:
    """Returns the configs of a folder of the project, as det_configs/NAME.py."""
    return sorted(f"{folder.name}/{path.name}" for path in folder.glob("*.py") if path.stem != "__init__")
