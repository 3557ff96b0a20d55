"""What the numbers in the label files of a split say about its classes: doubts that are worth an error or a word."""

from collections import Counter
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError, first_few
from tools.segmentation.classes import Classes
from tools.segmentation.labels import IGNORE

MOSTLY = 0.5
"""Share of ignored pixels that is worth a word; ADE20K has a tenth."""
NUM_SHOWN = 5


def class_values(classes: Classes, label_ids: tuple[int, ...]) -> list[int]:
    """Returns the number in the label files of each class."""
    return list(label_ids) or [index + classes.reduce_zero_label for index in range(len(classes.names))]


def check_found_values(
    name: str, folder: Path, found: Counter[int], classes: Classes, label_ids: tuple[int, ...]
) -> None:
    """Raises ValueError where a split's labels cannot teach or measure what the classes say.

    Args:
        name: "train" or "val".
        folder: of the label files.
        found: pixels by the number in the files.
    """
    values = class_values(classes, label_ids)
    present = [value for value in values if found[value] and (value != IGNORE or label_ids)]
    shown = _shown_values(found)
    remedy = f"map the numbers to classes, layout.label_ids={_ids_of(found)} for one, and name each with --classes"
    if not present:
        raise UserError(
            f"{folder}: every pixel of the usable labels of {name} is ignored (the files hold {shown}): there is "
            f"nothing to learn from or to measure; {remedy}"
        )
    if len(classes.names) == 1:
        raise UserError(
            f"{folder}: one class, '{classes.names[0]}', under a softmax is right wherever it is asked; the label "
            f"files hold {shown}: name what is beside it as a class too; {remedy}"
        )
    if len(present) == 1 and not label_ids and found[IGNORE] and IGNORE not in values:
        only = classes.names[values.index(present[0])]
        raise UserError(
            f"{folder}: the label files of {name} hold {shown}: {IGNORE} means ignore, which leaves '{only}' alone; "
            f"where {IGNORE} is a class, {remedy}"
        )


def doubts(name: str, found: Counter[int], classes: Classes, label_ids: tuple[int, ...]) -> list[str]:
    """Returns what is worth a word about a split: classes without a pixel, and labels that are mostly ignored."""
    values, lines = class_values(classes, label_ids), []
    absent = [f"'{title}' ({value})" for title, value in zip(classes.names, values, strict=True) if not found[value]]
    ignored = Counter({value: count for value, count in found.items() if value not in values})
    if absent:
        lines.append(
            f"no pixel of {first_few(absent, NUM_SHOWN)} in {name}: "
            "the number of each class in the label files is in brackets"
        )
    if len(absent) == len(classes.names) - 1:
        lines.append(
            f"one class alone has a pixel in {name} (the files hold {_shown_values(found)}): there is nothing to tell "
            "apart; layout.label_ids=A,B,... gives the number of each class"
        )
    share = ignored.total() / max(1, found.total())
    if share > MOSTLY:
        lines.append(
            f"{100 * share:.3g} % of the label pixels of {name} are ignored (they hold {_shown_values(ignored)}): "
            "layout.label_ids=A,B,... gives the number of each class"
        )
    return lines


def _ids_of(found: Counter[int]) -> str:
    """Returns the numbers in the files as `layout.label_ids` takes them, two at the least."""
    numbers = sorted(found)[:8] if len(found) > 1 else sorted({0, IGNORE, *found})[:2]
    return ",".join(map(str, numbers))


def _shown_values(found: Counter[int]) -> str:
    total = max(1, found.total())
    return first_few([f"{value} ({100 * count / total:.3g} %)" for value, count in found.most_common()], NUM_SHOWN)


def ignored_values(found: Counter[int], classes: Classes, label_ids: tuple[int, ...]) -> dict[str, Any]:
    """Returns the pixels of each number that is ignored, for data_report.json; JSON's keys are text."""
    values = set(class_values(classes, label_ids))
    return {str(value): found[value] for value in sorted(found) if value not in values}
