"""What the study says about few labels, from hand-made numbers and runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.drawn import note
from tools.reproduction import study_labels, study_report
from tools.reproduction.study import finetuning_folder

NAME = "nuclei mask AP"


def curves(random: dict[float, list[float]], full: dict[float, list[float]]) -> study_labels.Curves:
    rows = {"random": random, "full": full}
    shares = sorted({*random, *full})
    return {share: {NAME: {row: dict(enumerate(of.get(share, []))) for row, of in rows.items()}} for share in shares}


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (
            {0.1: [7.0, 9.0], 0.5: [12.0], 1.0: [20.0]},
            "SplitMask with 10 % of the labels equals random init with 100 %",
        ),
        ({0.1: [3.0], 0.5: [7.9], 1.0: [9.0]}, "SplitMask with 100 % of the labels equals random init with 100 %"),
        ({0.1: [3.0], 0.5: [4.0], 1.0: [5.0]}, "SplitMask with 50 % of the labels equals random init with 50 %"),
        ({0.1: [0.5], 0.5: [0.5], 1.0: [2.0]}, "SplitMask with 100 % of the labels equals random init with 10 %"),
        (
            {0.1: [0.1], 0.5: [0.2], 1.0: [0.3]},
            "SplitMask equals random init with no share of the labels (0.3 at most)",
        ),
    ],
)
def test_the_sentence_names_the_least_share_that_is_enough(full: dict[float, list[float]], expected: str) -> None:
    random = {0.1: [1.0, 2.0, 0.0], 0.5: [4.0], 1.0: [6.0, 10.0]}  # means 1, 4, 8
    (told,) = study_labels.sentences(curves(random, full))
    assert told.startswith(f"{NAME}: {expected}") and "but random init" not in told


def test_the_sentence_tells_a_mean_from_what_each_seed_shows() -> None:
    random = {0.1: [1.0, 2.0], 1.0: [5.0, 7.0]}  # mean 6
    (told,) = study_labels.sentences(curves(random, {0.1: [6.0, 7.0], 1.0: [9.0, 9.0]}))
    assert "with 100 % (6.5 against 6.0, with each of 2 seeds)" in told
    (told,) = study_labels.sentences(curves(random, {0.1: [10.0, 6.0], 1.0: [9.0, 9.0]}))
    assert "with 100 % (8.0 against 6.0, in the mean of 2 seeds, not with each)" in told
    both = curves(random, {0.1: [6.0, 7.0], 1.0: [9.0, 9.0]})
    both[0.1][NAME]["full"] = {1: 6.0, 2: 7.0}  # 6.0 against 7.0 with seed 1, which both have
    assert "(6.5 against 6.0, one seed, no verdict)" in study_labels.sentences(both)[0]


def test_a_curve_that_falls_is_told() -> None:
    (told,) = study_labels.sentences(curves({0.1: [5.0], 0.5: [7.0], 1.0: [4.0, 6.0]}, {0.1: [6.0], 1.0: [9.0]}))
    pair = "SplitMask with 10 % of the labels equals random init with 100 %"
    assert f"{pair} (6.0 against 5.0, one seed, no verdict); but random init" in told
    assert "better with 50 % than with 100 % (7.0 and 5.0)" in told


def test_one_share_alone_says_nothing(tmp_path: Path) -> None:
    alone = curves({1.0: [1.0]}, {1.0: [2.0]})
    assert study_labels.sentences(alone) == [] and study_labels.section(alone, alone) == ""
    study_labels.save_plot(alone, tmp_path / "labels.png")
    assert not (tmp_path / "labels.png").exists()


def test_a_row_has_one_colour_and_one_entry_of_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nuclei were made from random init alone, and CamVid from SplitMask alone."""
    few = {
        share: {"nuclei mask AP": {"random": {0: 1.0}, "full": {}}, "camvid mIoU": {"random": {}, "full": {0: 2.0}}}
        for share in (0.1, 1.0)
    }
    entries: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.legend",
        lambda self, lines, titles, **_: entries.append((titles, [line[0].get_color() for line in lines])),
    )
    calls = note(monkeypatch, "errorbar")
    study_labels.save_plot(few, tmp_path / "labels.png")
    assert [(named["label"], named["color"]) for _, named in calls] == [("random init", "C0"), ("SplitMask", "C1")]
    assert entries == [(["random init", "SplitMask"], ["C0", "C1"])]


def test_the_table_has_a_column_for_each_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row, share, seed, value in (
        ("random", 0.1, 0, 1.0), ("random", 0.1, 1, 3.0), ("random", 1.0, 0, 6.0),
        ("full", 0.1, 0, 7.0), ("full", 1.0, 0, 9.0),
    ):  # fmt: skip
        folder = finetuning_folder(tmp_path, row, "camvid", seed, share)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"mIoU": value}))
    rows = study_report.finished_rows(tmp_path, ())
    shares = study_report.finished_shares(tmp_path, (1.0,))
    assert shares == (0.1, 1.0), "those of an earlier call stay"
    third = finetuning_folder(tmp_path / "third", "full", "camvid", 0, 0.333)  # 33.3 / 100 is another number
    third.mkdir(parents=True)
    (third / "results.json").write_text(json.dumps({"mIoU": 1.0}))
    assert study_report.finished_shares(tmp_path / "third", (0.333, 1.0)) == (0.333, 1.0)
    assert study_report.finished_shares(tmp_path / "third", ()) == (pytest.approx(0.333),)
    values, few = study_report.read_values(tmp_path, rows), study_report.read_curves(tmp_path, rows, shares)
    assert values["camvid mIoU"] == {"random": {0: 6.0}, "full": {0: 9.0}}, "all labels alone in the first table"
    study_report.write_table(tmp_path, values, rows, few)
    text = (tmp_path / "table.md").read_text()
    assert "| fine-tuned on | 10 % | 100 % |" in text
    assert "| camvid mIoU, random init | 2.0 ± 1.4 (2) | 6.0 (1) |" in text
    assert "| camvid mIoU, SplitMask | 7.0 (1) | 9.0 (1) |" in text
    assert "| above random init | 6.0 (1) | 3.0 (1) |" in text, "of the one seed that both have"
    pair = "SplitMask with 10 % of the labels equals random init with 100 %"
    assert f"- camvid mIoU: {pair} (7.0 against 6.0, one seed, no verdict)" in text
    with open(tmp_path / "table.csv", newline="") as file:
        lines = {(line["row"], line["column"]): line["values"] for line in csv.DictReader(file)}
    assert lines["random", "camvid mIoU, 10 % of the labels"] == "1.0; 3.0" and lines["full", "camvid mIoU"] == "9.0"
    assert len(lines) == 4
    calls = note(monkeypatch, "errorbar")
    study_labels.save_plot(few, tmp_path / "labels.png")
    shares = (10.0, 100.0)
    drawn = {named["label"]: args for args, named in calls}
    assert drawn["random init"] == (shares, (2.0, 6.0), [pytest.approx(2**0.5), 0.0])
    assert drawn["SplitMask"] == (shares, (7.0, 9.0), [0.0, 0.0])
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.width > 200
