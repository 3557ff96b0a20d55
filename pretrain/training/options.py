"""What the user says about how a run is made, and what does not change its result. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

AUTO, ON, OFF = "auto", "on", "off"
"""Values of options that take others as well: `--cache` knows both (the user's own cache folder, where there is room,
and none), `--workers` the first (see `cores`)."""

WORKERS = AUTO
MAX_BAD_FRACTION = 0.01
"""Defaults of the command line."""

DEVICES = (AUTO, "cpu", "cuda")
COMPILE = (AUTO, ON, OFF)
PRECISIONS = ("32", "bf16")
"""float32, and mixed precision with weights and optimizer in float32."""

NUM_CHECKPOINTS = 2
"""Checkpoints that a run keeps, the newest ones."""


@dataclass(frozen=True)
class RunOptions:
    """Made where a command line is parsed.

    Attributes:
        output: folder of the run.
        resume: whether the run in it is continued.
        workers: data processes; 0 loads in the main one.
        save_every: steps between checkpoints.
        log_every: steps between log lines.
        max_bad_fraction: share of the images, in [0, 1], that may be missing or unreadable.
        rehearse: whether only the first steps are made, and timed.
        device: of `DEVICES`.
        deterministic: whether a GPU makes the same bytes each time; a resume keeps it.
    """

    output: Path
    resume: bool
    workers: int
    save_every: int
    log_every: int
    max_bad_fraction: float
    rehearse: bool = field(default=False, kw_only=True)
    device: str = field(default="auto", kw_only=True)
    deterministic: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, given: Mapping[str, Any], **changed: Any) -> Self:
        """Returns the options of a command line.

        Args:
            given: parsed, by name; what has no field is left out.
            changed: what is not as it was given.
        """
        values = {**given, **changed}
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def is_deterministic(self, previous: Mapping[str, Any] | None) -> bool:
        """Returns `deterministic`, or that of the run whose config.json is `previous`."""
        return self.deterministic or bool((previous or {}).get("free", {}).get("deterministic"))
