"""Which classes a data set has: --classes, the config, ROOT/classes.json, or ADE20K's by its folder names."""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.missing import check_file
from tools.segmentation.labels import IGNORE


@dataclass(frozen=True)
class Classes:
    """Names, colours and the rule for label 0.

    Attributes:
        names: in the order of their indices.
        palette: one `[r, g, b]` a class, 0-255.
        reduce_zero_label: whether label 0 means "ignore" and 1 is the first class.
    """

    names: list[str]
    palette: list[list[int]]
    reduce_zero_label: bool = False


def find_classes(root: Path | None, file: str | None, config: dict[str, Any], is_ade20k: bool) -> Classes:
    """Returns the classes; the first of these that is there: `--classes`, config, ROOT/classes.json, ADE20K.

    Raises:
        ValueError: a file that cannot be used, or none of them.
    """
    if file is not None:
        return read_classes(Path(file), "--classes")
    if isinstance(config.get("classes"), str):
        return known_classes(config["classes"], bool(config.get("reduce_zero_label")))
    if config.get("classes"):
        return make_classes(config["classes"], config.get("palette"), bool(config.get("reduce_zero_label")), "classes")
    if root is not None and (root / "classes.json").is_file():
        return read_classes(root / "classes.json", "class file")
    if is_ade20k:
        from mmseg.utils import ade_classes, ade_palette

        return Classes(ade_classes(), ade_palette(), reduce_zero_label=True)
    raise UserError(
        f"the classes of --data {root} are not known: name them with --classes FILE.json "
        '(a list of names, or {"classes": [...], "palette": [[r, g, b], ...]})'
    )


def known_classes(name: str, reduce_zero_label: bool) -> Classes:
    """Returns classes and colours that mmseg knows by a data set's name, such as "cityscapes".

    Raises:
        ValueError: a name that it does not know.
    """
    from mmseg.utils import get_classes, get_palette
    from mmseg.utils.class_names import dataset_aliases

    check_choice("data set in the config's classes", name, dataset_aliases)
    return make_classes(get_classes(name), get_palette(name), reduce_zero_label, f"classes '{name}'")


def read_classes(path: Path, title: str) -> Classes:
    """Returns the classes of a JSON file: a list of names, or an object with classes, palette, reduce_zero_label.

    Raises:
        ValueError: missing, not JSON, or of another form.
    """
    path = check_file(path, title)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{title} {path} is no JSON ({error}): write a list of names") from None
    if isinstance(value, list):
        value = {"classes": value}
    if not isinstance(value, dict) or "classes" not in value:
        raise UserError(f'{title} {path} must hold a list of names or {{"classes": [...]}}')
    for key in value:
        check_choice(f"key in {title} {path}", key, ["classes", "palette", "reduce_zero_label"])
    reduce_zero_label = value.get("reduce_zero_label", False)
    if not isinstance(reduce_zero_label, bool):
        raise UserError(f"{title} {path}: reduce_zero_label is {reduce_zero_label!r}, but must be true or false")
    return make_classes(value["classes"], value.get("palette"), reduce_zero_label, f"{title} {path}")


def make_classes(names: Any, palette: Any, reduce_zero_label: bool, title: str) -> Classes:
    """Returns checked classes, with colours of even hues where there is no palette.

    Raises:
        ValueError: no list of different names, more than 254, or a palette that does not fit.
    """
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{title}: the classes must be a list of names")
    names = list(names)
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{title}: class '{double}' is there twice: give each class its own name")
    if len(names) >= IGNORE:
        raise UserError(f"{title}: {len(names)} classes, but labels hold at most {IGNORE - 1} ({IGNORE} means ignore)")
    if palette is None:
        hues = [colorsys.hsv_to_rgb(i / len(names), 0.75, 0.95 - 0.35 * (i % 2)) for i in range(len(names))]
        palette = [[round(255 * value) for value in hue] for hue in hues]
    if isinstance(palette, list | tuple) and len(palette) != len(names):
        raise UserError(
            f"{title}: the palette holds {len(palette)} colours for {len(names)} classes: "
            "give one [r, g, b] a class, or omit the palette"
        )
    try:
        palette = [[int(value) for value in colour] for colour in palette]
        fits = all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in palette)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{title}: the palette must be a list of [r, g, b] with values 0-255, one a class")
    return Classes(names, palette, reduce_zero_label)
