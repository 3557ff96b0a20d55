"""Options of tools/pretrain.py that cannot be meant, and what a resume keeps of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.recipes import get_recipe
from tools.pretrain import build_parser
from tools.pretraining.options import PretrainOptions


def options(*words: object, output: object = "out") -> PretrainOptions:
    argv = ["--recipe", "small", "--data", "images", "--output", str(output), *map(str, words)]
    args = build_parser().parse_args(argv)
    return PretrainOptions.of(vars(args), output=Path(args.output))


def test_a_misspelt_word_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("auto", "off", "./of", "cache", str(tmp_path / "of")):
        options("--cache", word).check_cache_word()
    for word, meant in (("of", "off"), ("atuo", "auto")):
        with pytest.raises(ValueError, match=f"--cache {word}: did you mean {meant}"):
            options("--cache", word).check_cache_word()
    (tmp_path / "of").mkdir()
    options("--cache", "of").check_cache_word()


def test_a_run_does_not_draw_among_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in ("images", "./images/", tmp_path / "images"):
        with pytest.raises(ValueError, match="is a folder of --data, and what the run draws would be among"):
            options(output=output).check_output()
        with pytest.raises(ValueError, match="is a folder of --data"):
            options("--data", "more", output=output).check_output()
    with pytest.raises(ValueError, match="--output images is a folder of --data"):
        options("--rehearse", output="images/rehearsal").check_output()
    options(output="images/run").check_output()


@pytest.mark.parametrize(
    ("words", "previous", "kept"),
    [
        ((), None, {"monitor_every": None, "include": None, "hours": None, "deterministic": False}),
        (
            (),
            {"free": {"monitor_every": 50, "include": ["a*"], "deterministic": True}, "--hours": 2.0},
            {"monitor_every": 50, "include": ["a*"], "hours": 2.0, "deterministic": True},
        ),
        (
            ("--monitor-every", 20, "--include", "b*", "--hours", 3, "--save-every", 7),
            {"free": {"monitor_every": 50, "include": ["a*"], "save_every": 9}, "--hours": 2.0},
            {"monitor_every": 20, "include": ["b*"], "hours": 3.0, "save_every": 7},
        ),
    ],
)
def test_a_resume_keeps_what_it_omits(
    words: tuple[object, ...], previous: dict[str, Any] | None, kept: dict[str, Any]
) -> None:
    settled = options(*words).settled(get_recipe("small"), previous)
    assert {name: getattr(settled, name) for name in kept} == kept


def test_what_a_resume_brings_back_is_checked_with_the_rest() -> None:
    recipe = get_recipe("small").override({"reduced_jpeg": True})
    with pytest.raises(ValueError, match="keeps whole images, and --reduced-jpeg true decodes them anew"):
        options("--cache", "auto").settled(recipe, None)
    with pytest.raises(ValueError, match="holdout"):
        options("--holdout", 0.1).settled(get_recipe("small"), None)
    assert options("--holdout", 0.1).settled(get_recipe("small"), {"free": {"monitor_every": 5}}).monitor_every == 5
