"""The one error type for wrong user input, and the sentence that proposes the nearest right name."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Wrong input of the user: says what is wrong, where, and what to do, in one line.

    The Python API raises it as the ValueError it is; the tools print the same sentence after ``error:``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def first_few(items: Sequence[object], most: int = 3) -> str:
    """Returns ``a, b, c and 4 more``: the first items, and how many follow."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def nearest(name: object, choices: Iterable[str]) -> str:
    """Returns ``did you mean 'x'? `` for the choice most like ``name``, followed by all choices when they are few.

    Names one choice (the most similar one, however far off) where there is any, so that a user meets no dead end.
    """
    names = sorted(str(choice) for choice in choices)
    if not names:
        return "there is nothing to choose from"
    alike = _of_the_same_part(str(name), names)
    close = difflib.get_close_matches(str(name), alike, n=1, cutoff=0.0)
    best = close[0] if close else alike[0]
    listed = f"; choose from {', '.join(names)}" if len(names) <= 12 else ""
    return f"did you mean '{best}'?{listed}"


def _of_the_same_part(name: str, names: list[str]) -> list[str]:
    """Returns the names that end in a part of another name, its last part first; all names where there is none.

    `optimizer.lr`, as other tools spell it, means `lr`, however few letters they have in common; so does
    `learning_rate`, by its initials.
    """
    *others, last = name.lower().split(".")
    parts = [last, *reversed(others)]
    words = [word for part in parts if "." in name or "_" in part for word in reversed(part.split("_"))]
    initials = ["".join(word[:1] for word in part.split("_")) for part in parts if "_" in part]
    for part in (last, None, *parts, *initials, *words):
        if part is None:
            if difflib.get_close_matches(name, names, n=1, cutoff=0.75):
                return names  # only misspelt
            continue
        same = [known for known in names if known.lower().rpartition(".")[2] == part and not part.isdigit()]
        if same:
            return same
    return names


def check_choice(kind: str, name: object, choices: Iterable[str], option: str = "") -> None:
    """Raises UserError ``unknown <kind> '<name>': did you mean ...`` unless ``name`` is one of ``choices``.

    Args:
        option: that it was given with, to be named first.
    """
    names = list(choices)
    if name not in names:
        where = f"{option}: " if option else ""
        raise UserError(f"{where}unknown {kind} '{name}': {nearest(name, names)}")
