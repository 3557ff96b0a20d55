"""What a comparison is given: encoders by name, options of the tool, images to look at. Free of torch."""

import difflib
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from splitmask_backbones.errors import UserError
from splitmask_backbones.missing import check_weights
from splitmask_backbones.run_files import CONFIG, ENCODER, TABLE, TABLE_CSV
from tools.comparison.plan import LABELS, NONE, PICTURES, RANDOM, REHEARSALS, as_folder
from tools.comparison.same_time import RECORD as SAME_TIME
from tools.running.executor import LOGS, RECORD
from tools.running.planned import options_of

OWN = ("--resume", "--rehearse", "--eval-only", "--predict", "--best", "--seed", "--epochs", "--output")
"""Options of the tools that a comparison sets itself, or that would make its runs something else."""
OWN_VALUES = {
    "--epochs": "--steps",
    "epochs": "--steps",
    "steps": "--steps",
    "labels": "--labels",
    "lr": "--lr",
    "optim_wrapper.optimizer.lr": "--lr",
    "seed": "--seeds",
}
"""The same as `key=value`, and what says it here."""
PLACES = ("--data", "--val", "--train-json", "--train-images", "--val-json", "--val-images", "--train-list")
_RESERVED = {as_folder(RANDOM), REHEARSALS, PICTURES, LOGS, RECORD, TABLE, TABLE_CSV, CONFIG, SAME_TIME}


def read_starts(given: Sequence[str]) -> dict[str, str]:
    """Returns the encoder files by name; one without a name is called by its run's folder, or by its own name.

    Raises:
        ValueError: a file that is not there, a name that cannot be one, or two of one name.
    """
    starts: dict[str, str] = {}
    for text in given:
        name, equals, file = text.partition("=")  # a name has no such sign, a path may
        if not equals or Path(text).exists():
            name, equals, file = "", "", text
        path = Path(file)
        if file == NONE:
            raise UserError(f"--weights {text}: {RANDOM} is always compared: omit it")
        check_weights(path, f"--weights {text}:" if equals else "--weights")
        name = name if equals else path.absolute().parent.name if path.name == ENCODER else path.stem
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in _RESERVED:
            what = "is taken" if name in _RESERVED else "has to begin with a letter or digit, without blanks"
            raise UserError(f"--weights {text}: the name '{name}' {what}: give another, such as mine={file}")
        if name in starts:
            raise UserError(f"--weights: two are called {name}: give them names, such as mine={file}")
        starts[name] = file
    return starts


def check_options(tool: str, argv: Sequence[str], shares: Sequence[float]) -> None:
    """Raises ValueError for options of the tool that are a comparison's own, and for shares that it cannot take."""
    for text in argv:
        name, equals, _ = text.partition("=")
        name = name.strip()
        if name in OWN or equals and name in OWN_VALUES:
            remedy = f"use {OWN_VALUES[name]}" if name in OWN_VALUES else "omit it"
            raise UserError(f"{name} cannot be given to all runs of a comparison: {remedy}")
    if tool not in LABELS and list(shares) != [1.0]:
        raise UserError(
            f"--labels goes with {' and '.join(LABELS)}: {tool} takes a list of its training images (--train-list)"
        )


def check_spelling(tool: str, argv: Sequence[str], parser: ArgumentParser) -> None:
    """Raises ValueError for an option of the tool that is none, and is more like one of the comparison's own."""
    of_tool, own = options_of(tool), set(parser._option_string_actions)
    for text in argv:
        word = text.partition("=")[0]
        if word.startswith("--") and word not in of_tool:
            alike = difflib.get_close_matches(word, own | of_tool, n=1)
            if alike and alike[0] in own:
                raise UserError(f"unknown option '{word}': did you mean '{alike[0]}'?")


def places_of(argv: Sequence[str]) -> list[str]:
    """Returns the options that say where the data are, with absolute paths: runs on other data do not compare."""
    found = []
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, joined = option.partition("=")
        if name in PLACES:
            paths = (joined if equals else value).split("+")
            found.append(f"{name} {'+'.join(str(Path(path).absolute()) for path in paths)}")
    return sorted(found)
