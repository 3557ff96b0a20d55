"""What matplotlib is asked to draw: the numbers of a plot, and not only that there is a file."""

from typing import Any

import pytest
from matplotlib.axes import Axes


def note(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns the arguments of each call of a method of Axes, such as "errorbar", as they come; it draws as before."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    method = getattr(Axes, kind)

    def noted(self: Axes, *args: Any, **named: Any) -> Any:
        found.append((args, named))
        return method(self, *args, **named)

    monkeypatch.setattr(Axes, kind, noted)
    return found
