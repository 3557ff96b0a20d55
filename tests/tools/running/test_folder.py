"""The folder of a plan: continued with the same values, refused with others, and nothing left of a wrong start."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmask_backbones.errors import UserError
from tools.running.executor import Executor, JobError, carry_out, open_plan

CONFIG = {"command": "demo", "values": {"seed": 0}, "free": {"workers": 1}}


def test_a_plan_continues_with_the_same_values(tmp_path: Path) -> None:
    with open_plan(tmp_path / "out", "table.md", CONFIG) as folder:
        folder.write_config(CONFIG)
        folder.start()
    with open_plan(tmp_path / "out", "table.md", CONFIG | {"free": {"workers": 2}}) as folder:
        folder.write_config(CONFIG)
    for other, message in (
        (CONFIG | {"values": {"seed": 1}}, "^.*out holds a run with other settings: --seed was 0 and is now 1"),
        (CONFIG | {"command": "reproduce"}, "--output .*out holds another run"),
    ):
        with pytest.raises(UserError, match=message), open_plan(tmp_path / "out", "table.md", other):
            raise AssertionError("is not opened")


def test_a_wrong_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), open_plan(tmp_path / "out", "table.md", CONFIG):
        raise UserError("wrong")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (JobError(143, None), ("stopped: the same command continues from here\n", "")),
        (JobError(2, "error: --lr 0 is wrong"), ("", "error: --lr 0 is wrong\n")),
    ],
)
def test_exit_codes_and_lines_are_passed_on(
    error: JobError, shown: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(self: Executor, jobs: list) -> None:
        raise error

    monkeypatch.setattr(Executor, "run", fail)
    assert carry_out(Executor(tmp_path), []) == error.code
    assert capsys.readouterr() == shown
