"""One command of a plan, what it leaves, and what it waits for. Free of torch."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.recipes import Recipe
from tools.reproduction.sets import SETS

# Options that do not change the result: paths, and how the work is done.
FREE = {"--data", "--images", "--weights", "--tokenizer-weights", "--train-list"}
FREE |= {"--workers", "--save-every", "--log-every", "--monitor-every"}
LIST = "list"


@dataclass(frozen=True)
class Step:
    """One run of a tool.

    Attributes:
        name: of the step; steps of the same name are the same step.
        tool: file in tools/, such as "pretrain.py"; "list" writes a list of images in this process.
        words: arguments without --output and --resume.
        folder: what the tool writes into.
        artefact: file in it (or pattern) that marks the end.
        needs: names of steps that must be finished before.
        resumable: whether an unfinished run continues with --resume; otherwise the step is done again.
        seconds: expected, on one device; 0 where nothing is known.
        operations: floating-point operations, 0 for none worth counting.
        disk: bytes that it leaves.
        scratch: bytes that it needs beside while it runs.
        total_updates: of the training, for the progress line.
        recipe: its values where words name a recipe, whose values may change from one version to the next.
    """

    name: str
    tool: str
    words: tuple[str, ...]
    folder: Path
    artefact: str
    needs: tuple[str, ...] = ()
    resumable: bool = True
    with_output: bool = True
    seconds: float = 0.0
    operations: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    total_updates: int | None = None
    recipe: Recipe | None = None

    @property
    def done(self) -> bool:
        """Whether the step has finished."""
        return any(self.folder.glob(self.artefact))

    @property
    def started(self) -> bool:
        """Whether there is something to continue."""
        return self.resumable and (self.folder / "config.json").exists()

    def arguments(self) -> list[str]:
        """Returns everything after the tool's file."""
        output = ["--output", str(self.folder)] if self.with_output else []
        return [*self.words, *output, *(["--resume"] if self.started and not self.done else [])]

    def shown(self, gpus: int = 1) -> str:
        """Returns the command as a user would type it."""
        if self.tool == LIST:
            name, folder, destination = self.words
            return f"(writes {destination}: the images of {Path(folder) / SETS[name].list_of})"
        start = "python" if gpus == 1 or self.single_process else f"torchrun --standalone --nproc-per-node={gpus}"
        return shlex.join([*start.split(), f"tools/{self.tool}", *self.arguments()])

    @property
    def single_process(self) -> bool:
        """Whether the tool does not run under torchrun."""
        return self.tool in ("convert.py", "probe.py", LIST) or "--predict" in self.words

    def identity(self) -> list[str]:
        """Returns the words that decide the result."""
        kept, skip = [], False
        for word in self.words:
            if skip:
                skip = False
            elif word in FREE:
                skip = True
            else:
                kept.append(word)
        return [self.tool, *kept]

    def changed_values(self) -> dict[str, tuple[Any, Any]]:
        """Returns where the recipe of the run in the folder is not that of now: name -> (value then, value now).

        A value that an older run does not know had the default, which leaves things as they were.
        """
        if self.recipe is None:
            return {}
        try:
            then = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["values"]
            before = {field.name: then.get(field.name, field.default) for field in fields(self.recipe)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # the tool says what is wrong with such a run
        return {name: (before[name], now) for name, now in asdict(self.recipe).items() if before[name] != now}


def last_update(folder: Path) -> int | None:
    """Returns the newest update in a run's metrics.jsonl, None before the first."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry: Any = json.loads(line)
            return int(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
