"""Where the output of a job goes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools.running.output import Output

SAYS = "import sys; sys.stderr.write('warning: odd\\nerror: --lr 0 is wrong\\n'); print('hello'); sys.exit(2)"


def run(output: Output, code: str) -> tuple[int, str | None]:
    returned = output.start([sys.executable, "-c", code], "python it", os.environ).wait()
    return returned, output.error()


def test_the_screen_keeps_the_error_line_and_passes_the_rest_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(Output(None), SAYS) == (2, "error: --lr 0 is wrong")
    shown = capfd.readouterr()
    assert shown.err == "warning: odd\n"
    assert shown.out == "hello\n"
    assert run(Output(None), "pass") == (0, None)
    assert run(Output(None), "import os; os.kill(os.getpid(), 9)") == (-9, None)


def test_a_log_keeps_everything_and_knows_the_error_line_of_this_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "a.log"
    assert run(Output(path), SAYS) == (2, "error: --lr 0 is wrong")
    assert run(Output(path), "print('fine')") == (0, None)
    text = path.read_text()
    assert text.startswith("$ python it\n") and "warning: odd\nerror: --lr 0 is wrong\n" in text
    assert text.endswith("$ python it\nfine\n")
    assert capfd.readouterr() == ("", "")
