"""Numbers in label files that contradict the classes: an error or a word that names them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.helpers.seg_data import make_data
from tools.cli import start_log
from tools.segmentation.check import check_splits
from tools.segmentation.classes import make_classes
from tools.segmentation.layout import Layout, find_split
from tools.segmentation.values import check_found_values, doubts, ignored_values


def classes_of(*names, reduce_zero_label=False):
    return make_classes(list(names), None, reduce_zero_label, "test")


def check(root, classes, layout=None):
    splits = {name: find_split(root, name, layout) for name in ("train", "val")}
    return check_splits(splits, classes, 0.0, root / "bad_images.txt")[1]


def test_masks_of_0_and_255_with_two_classes_name_255_and_the_mapping(tmp_path):
    """255 was ignored in silence: an mIoU of 100."""
    make_data(tmp_path, values=(0, 255))
    with pytest.raises(ValueError, match=r"annotations/train: .* hold .*255 \(\d+.*255 means ignore, which") as caught:
        check(tmp_path, classes_of("background", "cell"))
    assert "leaves 'background' alone" in str(caught.value) and "layout.label_ids=0,255" in str(caught.value)
    counts = check(tmp_path, classes_of("background", "cell"), Layout(label_ids=(0, 255)))["train"]
    labels = np.concatenate([np.asarray(Image.open(tmp_path / f"annotations/train/{i}.png")) for i in range(3)])
    assert [entry["pixels"] for entry in counts["classes"].values()] == [(labels == 0).sum(), (labels == 255).sum()]
    assert counts["ignored_pixels"] == 0 and counts["ignored_values"] == {}


@pytest.mark.parametrize("values", [(0, 255), (0,), (0, 1)])
def test_one_class_under_a_softmax_is_an_error(tmp_path, values):
    """Its mIoU was 0, or 100."""
    make_data(tmp_path, values=(0, 255) if values == (0, 1) else values)
    layout = Layout(label_ids=(255,)) if values == (0, 1) else None
    with pytest.raises(ValueError, match=r"one class, 'cell', under a softmax .*--classes"):
        check(tmp_path, classes_of("cell"), layout)


def test_a_single_class_in_training_is_an_error_and_in_validation_a_word(tmp_path, capsys):
    make_data(tmp_path, values=(0, 1))
    for i in range(3):
        Image.new("L", (12, 10), 1).save(tmp_path / f"annotations/val/{i}.png")
    start_log()
    check(tmp_path, classes_of("a", "b"))
    assert "warning: no pixel of 'a' (0) in val" in capsys.readouterr().err
    for i in range(3):
        Image.new("L", (12, 10), 1).save(tmp_path / f"annotations/train/{i}.png")
    with pytest.raises(ValueError, match=r"'b' is the only class with a pixel, there is nothing to tell apart"):
        check(tmp_path, classes_of("a", "b"))


def test_values_outside_of_the_classes_are_listed_with_the_mapping(tmp_path):
    make_data(tmp_path, values=(0, 128, 255))
    with pytest.raises(ValueError, match=r"holds the value 128 .*layout.label_ids=A,B,\.\.\. \(the file holds 0, 128,"):
        check(tmp_path, classes_of("a", "b", "c"))
    counts = check(tmp_path, classes_of("a", "b", "c"), Layout(label_ids=(0, 128, 255)))["val"]
    assert all(entry["pixels"] for entry in counts["classes"].values())


def test_everything_ignored_names_the_numbers():
    with pytest.raises(ValueError, match=r"every pixel .* of val is ignored \(the files hold 255 \(100 %\)\)"):
        check_found_values("val", "labels", Counter({255: 9}), classes_of("a", "b"), ())
    with pytest.raises(
        ValueError, match=r"every pixel .* of val is ignored \(the files hold 0 \(90 %\), 255 \(10 %\)\)"
    ):
        check_found_values("val", "labels", Counter({0: 9, 255: 1}), classes_of("a", "b", reduce_zero_label=True), ())


def test_what_is_mostly_ignored_or_absent_is_a_word_with_its_number():
    classes, found = classes_of("a", "b", "c"), Counter({7: 10, 8: 30, 3: 40, 255: 20})
    check_found_values("train", "labels", found, classes, (7, 8, 9))
    lines = doubts("train", found, classes, (7, 8, 9))
    assert lines[0].startswith("no pixel of 'c' (9) in train")
    assert lines[1].startswith(
        "60 % of the label pixels of train are ignored (they hold 3 (66.7 %), 255 (33.3 %)): lay"
    )
    assert ignored_values(found, classes, (7, 8, 9)) == {"3": 40, "255": 20}
    assert doubts("train", Counter({0: 30, 1: 20, 2: 10, 255: 5}), classes, ()) == []
    zero = classes_of("a", "b", reduce_zero_label=True)
    assert doubts("train", Counter({0: 4, 1: 20, 2: 10}), zero, ()) == []
    assert ignored_values(Counter({0: 4, 1: 20}), zero, ()) == {"0": 4}
