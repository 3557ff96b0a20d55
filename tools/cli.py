"""What all command-line tools share: option errors that help, and the one ``error:`` line with exit code 2.

Imports nothing heavy, so that ``--help`` and option errors answer before torch is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pretrain.training.cores import auto_workers
from pretrain.training.options import DEVICES, MAX_BAD_FRACTION, PRECISIONS, WORKERS
from pretrain.training.processes import processes
from pretrain.training.signals import discard
from splitmask_backbones.errors import UserError, check_choice, nearest
from splitmask_backbones.run_files import REHEARSAL
from tools.common.remedies import describe

if TYPE_CHECKING:
    from pretrain.training.run_folder import RunFolder

EXIT_USER_ERROR = 2
_LEAVE_SECONDS = 2.0
"""How long what a failed tool leaves behind (libraries' threads, workers) may keep the process."""


class Parser(argparse.ArgumentParser):
    """argparse with full option names only, defaults in the help, and errors as UserError with the nearest name."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        started_as = Path(sys.argv[0]).name
        if started_as.startswith("splitmask-"):  # an installed command: the reader has no tools/
            kwargs["prog"] = started_as
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error as well")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        argv = _with_low_range([with_home(given) for given in (sys.argv[1:] if args is None else args)])
        for given in argv:  # before argparse complains about what is missing because of the misspelt name
            option = given.split("=")[0]
            looks_like_one = option.startswith("--") and option != "--" or re.match(r"-[A-Za-z]", option)
            if looks_like_one and option not in self._option_string_actions:
                raise UserError(f"unknown option '{option}': {nearest(option, self._option_string_actions)}")
        parsed, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            raise UserError(f"'{unknown[0]}' is one argument too many; see {self.prog} --help")
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        output = getattr(parsed, "output", None)
        if output is not None and not output.strip():
            raise UserError(f"--output is empty: name a {'file' if self.prog.endswith('tables.py') else 'folder'}")
        return parsed, unknown


def _with_low_range(argv: list[str]) -> list[str]:
    """Returns argv with `--range -1000,400` as one word: for argparse the value is an option, by its dash and comma."""
    joined: list[str] = []
    for given in argv:
        if joined[-1:] == ["--range"] and re.match(r"-[\d.]", given):
            joined[-1] += f"={given}"
        else:
            joined.append(given)
    return joined


def with_home(given: str) -> str:
    """Returns an argument with `~` and `~name` in front of a path as the folder that they stand for.

    A shell does that only at the beginning of a word: not in --output=~/run, NAME=~/file or FILE.json+~/images.
    """
    return re.sub(r"(?<![^=+])~[\w.-]*(?=/|$)", lambda match: os.path.expanduser(match[0]), given)


def _number(kind: type, fits: Callable[[Any], bool] = lambda value: True, rule: str = "") -> Callable[[str], Any]:
    """Returns a type for argparse: an int or float that fits; otherwise the message says the rule."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, got '{text}'") from None
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return value

    return parse


integer, number = _number(int), _number(float)
positive_int = _number(int, lambda value: value >= 1, "at least 1")
non_negative_int = _number(int, lambda value: value >= 0, "at least 0")
positive_float = _number(float, lambda value: 0 < value < float("inf"), "a positive number")
fraction = _number(float, lambda value: 0 <= value <= 1, "between 0 and 1")


def value_range(text: str) -> tuple[float, float]:
    """Parses LOW,HIGH for argparse."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high < float("inf") or low == -float("inf"):
        raise argparse.ArgumentTypeError(f"must be two increasing numbers with a comma between, got '{text}'")
    return low, high


def image_size(text: str) -> tuple[int, int]:
    """Parses the height and width of images, or one number for both, in pixels, for argparse."""
    sides = [int(side) if side.isdecimal() else 0 for side in text.split(",")]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size: give one number or HEIGHT,WIDTH in pixels")
    return sides[0], sides[-1]


def choice(kind: str, choices: Collection[str]) -> Callable[[str], str]:
    """Returns a type for argparse: one of some words; otherwise the message names the nearest."""

    def parse(text: str) -> str:
        try:
            check_choice(kind, text, choices)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds `--output` of a run; an empty one is refused by the parser."""
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")


def boolean(text: str) -> bool:
    """Parses true or false for argparse."""
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text}")
    return text.lower() in ("true", "yes", "1")


def add_run_options(parser: argparse.ArgumentParser, intervals: bool = True) -> None:
    """Adds what every training tool takes that does not change its result.

    Args:
        intervals: whether `--save-every` and `--log-every` have defaults here; otherwise a config has them.
    """
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    add_rehearse(parser)
    add_device(parser)
    add_deterministic(parser)
    add_workers(parser)
    for name, default, what in (("save", 500, "checkpoint"), ("log", 20, "log")):
        shown = default if intervals else "the config's"
        parser.add_argument(
            f"--{name}-every",
            type=positive_int,
            default=default if intervals else None,
            metavar="STEPS",
            help=f"{what} interval (default {shown})",
        )


def add_rehearse(parser: argparse.ArgumentParser) -> None:
    """Adds `--rehearse`."""
    text = "make the first steps and a small evaluation only, time them, and say what the run will take"
    parser.add_argument("--rehearse", action="store_true", help=f"{text}: DIR/rehearsal/rehearsal.json, no result")


def rehearsal_output(output: Path, rehearse: bool, resume: bool) -> Path:
    """Returns the folder that a command line works in: a rehearsal leaves that of the run itself free.

    Raises:
        ValueError: there is nothing to resume in a rehearsal.
    """
    if rehearse and resume:
        raise UserError("--rehearse and --resume exclude each other: a rehearsal begins anew each time")
    return output / REHEARSAL if rehearse else output


def add_device(
    parser: argparse.ArgumentParser, text: str = "where to compute (default auto: a GPU if there is one)"
) -> None:
    """Adds `--device`."""
    one_of = choice("device", DEVICES)
    parser.add_argument("--device", type=one_of, default="auto", metavar="|".join(DEVICES), help=text)


def add_precision(parser: argparse._ActionsContainer, text: str = "default 32", default: str | None = None) -> None:
    """Adds `--precision`."""
    one_of = choice("precision", PRECISIONS)
    parser.add_argument("--precision", type=one_of, default=default, metavar="|".join(PRECISIONS), help=text)


def add_deterministic(parser: argparse.ArgumentParser) -> None:
    """Adds `--deterministic`."""
    text = "on a GPU: the same bytes from the same seed, by slower algorithms; a CPU always does that"
    parser.add_argument("--deterministic", action="store_true", help=text)


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Adds `--workers`."""
    text = "data processes; auto: this process's share of the cores that may be used, but one (default auto)"
    parser.add_argument("--workers", type=_workers, default=WORKERS, metavar="auto|N", help=text)


def _workers(text: str) -> int:
    return auto_workers() if text == WORKERS else non_negative_int(text)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds `--include`, `--exclude` and `--range`."""
    for name, what in (("include", "take only images"), ("exclude", "leave out images")):
        text = f"{what} whose path or file name matches; may be repeated"
        parser.add_argument(f"--{name}", action="append", metavar="GLOB", help=text)
    text = "values that become 0 and 255 where images have more than 8 bits (default: percentiles of the data)"
    parser.add_argument("--range", type=value_range, metavar="LOW,HIGH", help=text)


def add_bad_fraction(group: argparse._ActionsContainer) -> None:
    """Adds `--max-bad-fraction` and `--max-pixels`."""
    group.add_argument(
        "--max-bad-fraction",
        type=fraction,
        default=MAX_BAD_FRACTION,
        metavar="F",
        help=f"largest share of images that are missing or unreadable (default {MAX_BAD_FRACTION})",
    )
    text = "largest image that is read, in pixels (default 89478485, Pillow's limit); each data process takes about 11 "
    text += "bytes a pixel; a mosaic is better cut into tiles"
    group.add_argument("--max-pixels", type=_max_pixels, metavar="N", help=text)


def _max_pixels(text: str) -> int:
    """Parses and sets the limit: data processes inherit it, however they are started."""
    from pretrain.data.pixel_limit import set_pixel_limit

    pixels: int = positive_int(text)
    set_pixel_limit(pixels)
    return pixels


def take_overrides(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[list[str], list[str]]:
    """Returns argv without, and what in it is, `key=value`: argparse cannot mix such a list with options."""
    rest: list[str] = []
    overrides: list[str] = []
    is_value = False
    for item in argv:
        if not is_value and re.match(r"[A-Za-z_][\w.\-\[\]]*\s*=", item) and not Path(item).exists():
            overrides.append(item)
            continue
        rest.append(item)
        action = parser._option_string_actions.get(item)
        is_value = action is not None and action.nargs != 0
    return rest, overrides


def add_values(parser: argparse.ArgumentParser, recipe: type, names: Collection[str] | None = None) -> None:
    """Adds one option for every value of a recipe, with choices and default in its help.

    Args:
        recipe: a dataclass whose fields have "help" and "choices" in their metadata.
        names: of the values that get one, all by default.
    """
    group = parser.add_argument_group("recipe values")
    types: dict[str, Any] = {"int": integer, "float": number, "str": str, "bool": boolean}
    for field in dataclasses.fields(recipe):
        if names is not None and field.name not in names:
            continue
        choices, kind = field.metadata["choices"], str(field.type)
        if kind.startswith("bool"):
            choices = ("true", "false")
        parse = types[kind.removesuffix(" | None")]
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_or_none(parse) if names is None and kind.endswith("| None") else parse,
            metavar="|".join(choices) if choices else field.name.upper().split("_")[-1],
            help=f"{field.metadata['help']} (default {_shown(field.default)})".replace("%", "%%"),
        )


_NONE = object()
"""What `none` on the command line becomes: None is an option that is not given."""


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: _NONE if text.lower() == "none" else parse(text)


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return str(default).lower()
    return f"{default:.3g}" if isinstance(default, float) else str(default)


def given_values(args: argparse.Namespace, recipe: type) -> dict[str, Any]:
    """Returns the recipe values that stand on the command line."""
    names = [field.name for field in dataclasses.fields(recipe)]
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    return {name: None if value is _NONE else value for name, value in given.items()}


def print_error(error: BaseException, debug: bool) -> None:
    """Writes the traceback (with ``debug``) and then exactly one unwrapped line ``error: ...`` to stderr.

    Of several processes one says ``error:``; the others say ``rank N:`` with what they met, which is mostly the same.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)  # else the interpreter meets the same error at its end
    if debug:
        traceback.print_exception(error)
    try:
        rank = processes().rank
    except UserError:  # there is no telling: it is what the error is about
        rank = 0
    distributed = sys.modules.get("pretrain.training.distributed")
    if distributed is not None and distributed.is_distributed():
        speaks = distributed.announce_failure()
    else:
        speaks = rank == 0
    sys.stderr.write(f"{'error' if speaks else f'rank {rank}'}: {' '.join(describe(error).splitlines())}\n")
    sys.stderr.flush()


def start_log() -> None:
    """Connects the project's loggers to the screen: information to stdout, warnings as `warning:` lines to stderr."""
    logging.raiseExceptions = False  # a reader of stdout that has gone is no reason for tracebacks
    to_stdout, to_stderr = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    to_stdout.addFilter(lambda record: record.levelno < logging.WARNING)
    to_stderr.setLevel(logging.WARNING)
    to_stderr.setFormatter(logging.Formatter("warning: %(message)s"))
    for name in ("pretrain", "splitmask_backbones", "tools"):
        logger = logging.getLogger(name)
        # The load report is a table on the screen, not a line of the log.
        logger.setLevel(logging.WARNING if name == "splitmask_backbones" else logging.INFO)
        logger.handlers[:] = [to_stdout, to_stderr]
        logger.propagate = False


def say(folder: RunFolder, text: str) -> None:
    """Prints a line at once, in the main process only."""
    if folder.is_main:
        print(text, flush=True)


def code_of(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Runs ``main(argv)``; returns 0 or its return value, 2 after one ``error:`` line, 130 after an interrupt."""
    try:
        code = main(argv) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        print_error(error, "--debug" in argv)
        code = EXIT_USER_ERROR
    return code


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs ``main`` on the command line and exits with `code_of`; after an error within seconds, whatever hangs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the screen cannot show is no error
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)  # of a run, `StopSignals` takes it over
    code: Any = EXIT_USER_ERROR
    try:
        code = code_of(main, sys.argv[1:])
    except SystemExit as end:
        code = end.code
        raise
    finally:
        if code:
            threading.Thread(target=_leave, args=(code,), daemon=True).start()
    raise SystemExit(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _leave(code: int) -> None:
    time.sleep(_LEAVE_SECONDS)
    os._exit(code)
