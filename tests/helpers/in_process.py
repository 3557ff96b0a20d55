"""A tool as `cli.run` runs it, in this process: quicker than a new one, with the same exit code and the same lines."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable
from unittest import mock

from tools import cli


def run_tool(main: Callable[[list[str]], int | None], *words: object) -> subprocess.CompletedProcess[str]:
    """Returns exit code, stdout and stderr of a tool's main function."""
    argv = list(map(str, words))
    out, err = io.StringIO(), io.StringIO()
    with mock.patch("sys.argv", ["tool", *argv]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.code_of(main, argv)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())
