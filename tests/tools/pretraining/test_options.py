"""A misspelt word of `--cache` is told, and no folder is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.pretraining.options import PretrainOptions


def options(cache: str) -> PretrainOptions:
    made = object.__new__(PretrainOptions)
    object.__setattr__(made, "cache", cache)
    return made


def test_a_misspelt_word_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("auto", "off", "./of", "cache", str(tmp_path / "of")):
        options(word).check_cache_word()
    for word, meant in (("of", "off"), ("atuo", "auto")):
        with pytest.raises(ValueError, match=f"--cache {word}: did you mean {meant}"):
            options(word).check_cache_word()
    (tmp_path / "of").mkdir()
    options("of").check_cache_word()
