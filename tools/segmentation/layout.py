"""Where a data set keeps its pairs and which numbers its label files hold: the config's `layout`. Free of torch."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from splitmask_backbones.errors import UserError, check_choice

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


@dataclass(frozen=True)
class Layout:
    """Folders and file names of a data set; by default ROOT/images/{train*,val*} and ROOT/annotations/{train*,val*}.

    Attributes:
        images, labels: folders under ROOT; "{split}" stands for the folder of the split, also "training" for "train"
            and the like.
        image_suffix, label_suffix: endings of the files; what stands before them is the pair's name. "" means any
            suffix of pictures.
        names: a text file with one name a line, for data sets that keep both splits in one folder; "" for none.
        label_ids: the number in the label files of each class, in order; all other numbers are ignored. Empty: the
            files hold class indices.
    """

    images: str = "images/{split}"
    labels: str = "annotations/{split}"
    image_suffix: str = ""
    label_suffix: str = ""
    names: str = ""
    label_ids: tuple[int, ...] = ()


def make_layout(value: Any) -> Layout:
    """Returns the layout of the config's `layout`; None is the default one.

    Raises:
        ValueError: an unknown key, or a value of another kind.
    """
    if value is None:
        return Layout()
    if not isinstance(value, dict):
        raise UserError(f"layout must be dict(images=..., labels=..., ...), got {value!r}")
    defaults = dataclasses.asdict(Layout())
    for key, given in value.items():
        check_choice("layout key", key, defaults)
        if key == "label_ids":
            if not isinstance(given, list | tuple) or not all(type(item) is int and item >= 0 for item in given):
                raise UserError(f"layout.label_ids must be a list of whole numbers, got {given!r}")
            if len(set(given)) != len(given):
                raise UserError("layout.label_ids holds a number twice: give each class its own")
        elif not isinstance(given, str):
            raise UserError(f"layout.{key} must be text, got {given!r}")
    layout = Layout(**{**value, "label_ids": tuple(value.get("label_ids", ()))})
    both = "{split}" in layout.images and "{split}" in layout.labels
    if not both and "{split}" not in layout.names:
        raise UserError(
            'layout: "{split}" must stand in images and labels, or in names: else train and val are the same'
        )
    return layout
