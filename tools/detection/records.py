"""What a COCO file comes to: images with usable objects, and a count of what is wrong with single annotations."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Instance:
    """One usable annotation.

    Attributes:
        box: x1, y1, x2, y2 in pixels, within the image.
        label: contiguous class index from 0, in order of category ids.
        segmentation: polygons within COCO's format, or an RLE of the image's size; None for a box alone.
        area: pixels, as annotated, or the mask's (without one the box's) where that cannot be; COCO's small, medium,
            large.
        crowd: a region of many objects: never a training target, ignored (not missed) in evaluation.
        id: of the annotation in the file, to name it.
        whole: the box as annotated, where it reached out of the image and was clipped: None where it is `box`.
    """

    box: tuple[float, float, float, float]
    label: int
    segmentation: Any
    area: float
    crowd: bool
    id: Any = None
    whole: tuple[float, float, float, float] | None = None


@dataclass
class ImageRecord:
    """One image: its id in the file, path below the image folder, size in pixels and usable annotations."""

    id: int
    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is no object in it but crowds."""
        return all(instance.crowd for instance in self.instances)


@dataclass
class Flaws:
    """What is wrong with single entries: kind -> [count, first id]."""

    kinds: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, kind: str, id: Any) -> None:
        """Counts one more of a kind."""
        self.kinds.setdefault(kind, [0, id])[0] += 1

    def listed(self) -> str:
        """Returns all kinds with their counts, in words."""
        return ", ".join(f"{count} with {kind}" for kind, (count, _) in self.kinds.items())
