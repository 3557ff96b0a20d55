"""The folder in which a plan is carried out: locked, continued where it was begun, and the plan's exit code."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import CONFIG, LOCK, RunFolder
from splitmask_backbones.errors import UserError
from tools.running.executor import RECORD, Executor, JobError
from tools.running.job import Job


@contextmanager
def open_plan(output: Path, artefact: str, config: dict[str, Any]) -> Iterator[RunFolder]:
    """Owns a plan's folder: a new one, or one that was begun with the same config. No --resume is asked for.

    The caller writes the config of a new one as soon as its input is known to be good: a wrong input leaves nothing.

    Args:
        output: the folder.
        artefact: name of the file that only such a plan leaves.
        config: "command", "values" that decide the result, "free" ones.

    Raises:
        ValueError: the folder holds another run or other values, or is in use.
    """
    begun = (output / CONFIG).exists() or (output / LOCK).exists()
    with RunFolder.open(output, resume=begun, artefact=artefact) as folder:
        if folder.previous is not None:
            if folder.previous.get("command") != config["command"]:
                raise UserError(f"--output {output} holds another run ({CONFIG}): choose another folder")
            try:
                folder.write_config(config)  # compares
            except UserError as error:  # here a run is resumed without the option
                raise UserError(str(error).removeprefix("--resume: ")) from None
        yield folder


def run_plan(
    executor: Executor, jobs: Sequence[Job], config: dict[str, Any], prepare: Callable[[], object] = lambda: None
) -> int:
    """Carries out a plan whose jobs are known from the start, `prepare` first; returns the exit code.

    Raises:
        ValueError: the folder holds something else, or `prepare` raised it, which leaves a new folder unmade.
    """
    with open_plan(executor.output, RECORD, config) as folder:
        prepare()
        folder.write_config(config)
        folder.start()
        return carry_out(executor, jobs)


def carry_out(executor: Executor, jobs: Sequence[Job]) -> int:
    """Runs the jobs of a plan; returns the exit code, and says why it is not 0."""
    try:
        executor.run(jobs)
    except JobError as error:
        if error.line is not None:
            sys.stderr.write(f"{error.line}\n")
        else:
            sys.stdout.write("stopped: the same command continues from here\n")
            sys.stdout.flush()
        return error.code
    return 0
