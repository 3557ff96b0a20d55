"""What became of every key of a weights file. Free of torch."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoadReport:
    """What became of every key of a file and every parameter of the model."""

    path: str
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    expected_missing: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    partial: str = ""  # what an earlier conversion with --allow-partial left open

    @property
    def complete(self) -> bool:
        """Whether every key of the file and every parameter of the encoder is accounted for."""
        return not self.unexpected and not self.missing

    @property
    def warning(self) -> str:
        """One line where the weights are not whole, now or since an earlier conversion; else empty."""
        if self.complete:
            return f"{self.path}: {self.partial}" if self.partial else ""
        return f"{self.path}: {self.gaps()}: the result is partial"

    def gaps(self) -> str:
        """Returns how many parameters have no value and how many keys no place."""
        return f"{len(self.missing)} parameters missing and {len(self.unexpected)} keys unexpected"

    def as_json(self) -> dict[str, Any]:
        """Returns the report for a file: the source, whether it is complete, and every key with what became of it."""
        keys = [{"key": key, "state": state, "reason": reason} for key, state, reason in self.rows()]
        warning = {"warning": self.warning} if self.warning else {}
        return {"source": self.path, "complete": self.complete, **warning, "keys": keys}

    def rows(self) -> list[tuple[str, str, str]]:
        """Returns (key, what became of it, why) for every key, what was not simply loaded first."""
        entries = [(key, "missing", "random values") for key in self.missing]
        entries += [(key, "unexpected", "nothing takes it") for key in self.unexpected]
        entries += [(key, title, reason) for title, named in self._changed() for key, reason in named.items()]
        return entries + [(key, "loaded", "") for key in self.loaded]

    def _changed(self) -> list[tuple[str, dict[str, str]]]:
        return [("resized", self.resized), ("dropped", self.dropped), ("expected missing", self.expected_missing)]

    def summary(self) -> str:
        """Returns one line: counts, and each key that was not simply loaded, with the reason."""
        parts = [f"{len(self.loaded)} loaded"]
        for title, entries in self._changed():
            if entries:
                shown = [f"{key}: {reason}" for key, reason in list(entries.items())[:4]]
                more = [f"and {len(entries) - 4} more"] if len(entries) > 4 else []
                parts.append(f"{len(entries)} {title} ({'; '.join(shown + more)})")
        return f"{self.path}: {', '.join(parts)}"
