"""What the project's loggers say, on the screen: information to stdout, warnings as `warning:` lines to stderr."""

from __future__ import annotations

import logging
import sys


def start_log() -> None:
    """Connects the loggers of this project to the screen; those of other libraries stay at warnings."""
    to_stdout, to_stderr = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    to_stdout.addFilter(lambda record: record.levelno < logging.WARNING)
    to_stderr.setLevel(logging.WARNING)
    to_stderr.setFormatter(logging.Formatter("warning: %(message)s"))
    for name in ("pretrain", "splitmask_backbones", "tools"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers[:] = [to_stdout, to_stderr]
        logger.propagate = False
