"""The pictures that `--predict` names, and those of them that can be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.data.decode import UnreadableImage, read_image
from pretrain.data.sources import SUFFIXES
from splitmask_backbones.errors import UserError


def find_pictures(path: Path) -> tuple[Path, list[str]]:
    """Returns a folder and the names of the pictures in it and below, or that of the one picture given.

    Raises:
        ValueError: no picture there.
    """
    if path.is_file():
        return path.parent, [path.name]
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not names:
        raise UserError(f"--predict {path} holds no images: name a folder with {', '.join(SUFFIXES)} files")
    return path, names


def readable_pictures(path: Path) -> tuple[Path, dict[str, tuple[int, int]]]:
    """Returns a folder, and name and `(H, W)` of each picture in it that can be read; others get a `warning:` line.

    Raises:
        ValueError: no picture there, or none that can be read.
    """
    root, names = find_pictures(path)
    sizes: dict[str, tuple[int, int]] = {}
    for name in names:
        try:
            image = read_image(root / name)
        except UnreadableImage as error:
            if len(names) == 1:
                raise UserError(f"--predict {root / name} cannot be read: {error}") from None
            sys.stderr.write(f"warning: unreadable image {root / name}: {error}\n")
            continue
        sizes[name] = (image.height, image.width)
    if not sizes:
        raise UserError(f"--predict {path}: none of the {len(names)} images can be read")
    return root, sizes


def picture_names(names: Sequence[str]) -> list[str]:
    """Returns a `.png` name for each image name; the old suffix stays where two would fall together."""
    stems = [str(Path(name).with_suffix("")) for name in names]
    return [f"{stem}.png" if stems.count(stem) == 1 else f"{name}.png" for stem, name in zip(stems, names, strict=True)]
