"""The pictures that `--predict` names, those of them that can be read, and what is drawn of them."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.data.decode import UnreadableImage
from pretrain.data.sources import ImageList, find_images
from pretrain.data.value_range import ValueRange
from pretrain.training.run_folder import write_json
from splitmask_backbones.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class Pictures:
    """Pictures to predict.

    Attributes:
        images: those that can be read.
        sizes: `(H, W)` of each.
        output: folder for the drawings.
        found: what predictions.json is to hold, by name.
    """

    images: ImageList
    sizes: list[tuple[int, int]]
    output: Path
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._targets = _targets(self.images.names)

    def save(self, index: int, drawn: Image.Image) -> None:
        """Writes the drawing of a picture."""
        target = self.output / self._targets[self.images.names[index]]
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(target)

    def write(self) -> None:
        """Writes predictions.json."""
        write_json(self.output / "predictions.json", self.found)


def _targets(names: Sequence[str]) -> dict[str, str]:
    """Returns the drawing's name of each picture: `NAME.png`; the old suffix stays where two would fall together."""
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    taken = Counter([*stems.values(), *names])  # beside a.jpg and a.png there may be an a.jpg.jpg
    return {name: f"{stem if taken[stem] == 1 else name}.png" for name, stem in stems.items()}


def open_pictures(path: Path, output: Path, value_range: ValueRange | None = None) -> Pictures:
    """Returns the pictures in a folder and below, or the one given; each that cannot be read gets a `warning:` line.

    Raises:
        ValueError: no picture there, or none that can be read.
    """
    root = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else find_images(root, "--predict")[0]
    found = ImageList(root, names, value_range=value_range)
    sizes: dict[str, tuple[int, int]] = {}
    for index, name in enumerate(found.names):
        try:
            image = found.decode(index)
        except UnreadableImage as error:
            if len(found) == 1:
                raise UserError(f"--predict {root / name} cannot be read: {error}") from None
            logger.warning("unreadable image %s: %s", root / name, error)
            continue
        sizes[name] = (image.height, image.width)
    if not sizes:
        raise UserError(f"--predict {path}: none of the {len(found)} images can be read")
    return Pictures(found.subset(sizes), list(sizes.values()), output)
