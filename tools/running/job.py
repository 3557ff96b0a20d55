"""One command of a plan, what it leaves, and what it waits for. Free of torch."""

import json
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import flatten
from splitmask_backbones.files import sha256_of
from splitmask_backbones.run_files import CONFIG, METRICS_LOG
from tools.running.planned import planned_values

# Options that do not change the result: paths, and how the work is done.
FREE = {"--data", "--images", "--weights", "--tokenizer-weights", "--train-list"}
FREE |= {"--cache", "--workers", "--save-every", "--log-every", "--monitor-every"}
WITHOUT_DEVICE = ("convert.py", "benchmarks/lightly_dino.py")
"""Tools that take no --device: conversions are compared on the CPU, and lightly-train chooses by itself."""


@dataclass(frozen=True)
class Job:
    """One run of a tool.

    Attributes:
        name: of the job; jobs of the same name are the same job.
        tool: file in tools/, such as "pretrain.py".
        argv: its command line without --output and --resume.
        folder: what the tool writes into.
        artefact: file in it (or pattern) that marks the end.
        needs: names of jobs that must be finished before.
        resumable: whether an unfinished run continues with --resume; otherwise the job is done again.
        with_output: whether the tool takes --output.
        seconds: expected, on one device; 0 where nothing is known.
        operations: floating-point operations, 0 for none worth counting.
        disk: bytes that it leaves.
        scratch: bytes that it needs beside while it runs.
        num_steps: of the training, for the progress line.
        batch_size: images of one of them; 0 where there is none.
        model: encoder's name, where argv leaves it to the weights.
        missing: what the user has to give before it can run.
    """

    name: str
    tool: str
    argv: tuple[str, ...]
    folder: Path
    artefact: str
    needs: tuple[str, ...] = ()
    resumable: bool = True
    with_output: bool = True
    seconds: float = 0.0
    operations: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    num_steps: int | None = None
    batch_size: int = 0
    model: str = ""
    missing: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the job has finished."""
        return any(self.folder.glob(self.artefact))

    @property
    def started(self) -> bool:
        """Whether there is something to continue."""
        return self.resumable and (self.folder / CONFIG).exists()

    @property
    def single_process(self) -> bool:
        """Whether the tool does not run under torchrun."""
        return self.tool in ("convert.py", "probe.py") or "--predict" in self.argv

    def full_argv(self) -> list[str]:
        """Returns everything after the tool's file."""
        output = ["--output", str(self.folder)] if self.with_output else []
        return [*self.argv, *output, *(["--resume"] if self.started and not self.done else [])]

    def shown(self, gpus: int = 1) -> str:
        """Returns the command as a user would type it."""
        start = "python" if gpus == 1 or self.single_process else f"torchrun --standalone --nproc-per-node={gpus}"
        return shlex.join([*start.split(), f"tools/{self.tool}", *self.full_argv()])

    def identity(self) -> list[str]:
        """Returns what of the command line decides the result."""
        pairs = zip(("", *self.argv), self.argv, strict=False)
        return [
            self.tool,
            *(text for before, text in pairs if before not in FREE and text.partition("=")[0] not in FREE),
        ]

    def replaced_weights(self) -> Path | None:
        """Returns the file of weights given where the folder holds what was made from others, else None.

        That is `--weights` of a training, and the source of a conversion.
        """
        given, record, name = dict(pairwise(self.argv)).get("--weights"), CONFIG, "--weights"
        if self.tool == "convert.py":
            given, record, name = self.argv[0], f"{self.artefact}.report.json", "sha256"
        if given is None:  # of a job that uses a run, such as one that draws its predictions
            return None
        try:
            then = json.loads((self.folder / record).read_text(encoding="utf-8"))[name]
            now = weights_digest(given)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not made yet, or a run that names no weights
        return Path(given) if now and then != now else None

    def changed_values(self) -> dict[str, tuple[Any, Any]]:
        """Returns where the recipe of the run in the folder is not that of now: name -> (value then, value now).

        Recipes and configs change from one version to the next.
        """
        try:
            record = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
            then = flatten(record["values"]) | flatten(record.get("recipe_values", {}))
            now = planned_values(self.tool, self.argv)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModuleNotFoundError):
            return {}  # the tool says what is wrong with such a run, or with such a command line
        return {name: (then.get(name), value) for name, value in now.items() if then.get(name) != value}


def weights_digest(given: str) -> str:
    """Returns the sha256 of a file of weights, "none" for none, "" where there is no such file."""
    file = Path(given)
    return given if given == "none" else _digest(given, file.stat().st_mtime_ns) if file.is_file() else ""


@cache
def _digest(path: str, mtime_ns: int) -> str:
    """Returns the sha256 of a file; several jobs begin from one, and it may be written again."""
    return sha256_of(path)


def last_step(folder: Path) -> int | None:
    """Returns the newest step in a run's metrics.jsonl, None before the first."""
    try:
        with open(folder / METRICS_LOG, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
