"""Labelled images in every layout, made here: recognised, read, checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmask_backbones.errors import UserError
from tests.helpers.cls_data import write_classes, write_root
from tools.classification.data import DataOptions, _order, find_unreadable, open_data, report, without_unreadable


def options(data: Path, **values: Any) -> DataOptions:
    return DataOptions(str(data), **values)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), "red").save(root / name)


def pairs(data: Any, split: str) -> dict[str, str]:
    """Returns name -> class as a user would read it."""
    images = data.splits[split]
    assert images.images.names == sorted(images.images.names)
    assert all(images.images.path(name).is_file() for name in images.images.names)
    return {name: data.classes[label] for name, label in zip(images.images.names, images.labels, strict=True)}


def folder(root: Path) -> None:
    touch(root, "train/cat/a.jpg", "train/cat/deep/b.PNG", "train/dog/a.jpg", "val/cat/c.jpg", "val/dog/d.jpg")


def imagenet(root: Path) -> None:
    touch(root, "train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG", "val/n01/ILSVRC_1.JPEG", "val/n02/ILSVRC_2.JPEG")


def inat(root: Path, year: int) -> None:
    base = f"train_val{year}"
    names = {"train": [f"{base}/Birds/7/a.jpg", f"{base}/Birds/9/b.jpg"], "val": [f"{base}/Birds/9/c.jpg"]}
    touch(root, *names["train"], *names["val"])
    categories = [{"id": 9, "name": "Corvus corax"}, {"id": 7, "name": "Pica pica"}, {"id": 8, "name": "unused"}]
    for split, listed in names.items():
        images = [{"id": 50 + i, "file_name": name} for i, name in enumerate(listed)]
        ids = {name: int(name.split("/")[2]) for name in listed}
        annotations = [
            {"id": i, "image_id": 50 + i, "category_id": 9 if split == "val" else ids[name]}
            for i, name in enumerate(listed)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}{year}.json").write_text(json.dumps(content))


def food(root: Path) -> None:
    touch(root, "images/apple_pie/1.jpg", "images/waffles/2.jpg", "images/waffles/3.jpg")
    (root / "meta").mkdir()
    (root / "meta/train.txt").write_text("apple_pie/1\nwaffles/2\n")
    (root / "meta/test.txt").write_text("waffles/3\n")


def cars(root: Path) -> None:
    np, scipy_io = pytest.importorskip("numpy"), pytest.importorskip("scipy.io")
    touch(root, "cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")
    (root / "devkit").mkdir()
    for name, listed in (
        ("cars_train_annos.mat", [("00001.jpg", 2), ("00002.jpg", 1)]),
        ("cars_test_annos_withlabels.mat", [("00001.jpg", 1)]),
    ):
        entries = np.array(listed, dtype=[("fname", object), ("class", object)]).reshape(1, -1)
        scipy_io.savemat(root / "devkit" / name, {"annotations": entries})
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object).reshape(1, -1)
    scipy_io.savemat(root / "devkit/cars_meta.mat", {"class_names": names})


def domainnet(root: Path) -> None:
    touch(root, "clipart/anvil/a.jpg", "clipart/axe/b.jpg", "clipart/axe/c.jpg", "sketch/axe/d.jpg")
    (root / "clipart_train.txt").write_text("clipart/anvil/a.jpg 10\nclipart/axe/b.jpg 2\n")
    (root / "clipart_test.txt").write_text("clipart/axe/c.jpg 2\n")


def lists(root: Path) -> None:
    touch(root, "in/one two.jpg", "in/b.jpg", "in/c.jpg")
    (root / "train.txt").write_text("path,label\nin/one two.jpg,good\n# a comment\n\n./in/b.jpg,bad\n")
    (root / "test.txt").write_bytes(b"\xef\xbb\xbfin/c.jpg\tbad\r\n")


@pytest.mark.parametrize(
    ("make", "layout", "train", "val"),
    [
        (folder, "folder", {"train/cat/a.jpg": "cat", "train/cat/deep/b.PNG": "cat", "train/dog/a.jpg": "dog"},
         {"val/cat/c.jpg": "cat", "val/dog/d.jpg": "dog"}),
        (imagenet, "folder", {"train/n01/n01_1.JPEG": "n01", "train/n02/n02_1.JPEG": "n02"},
         {"val/n01/ILSVRC_1.JPEG": "n01", "val/n02/ILSVRC_2.JPEG": "n02"}),
        (lambda root: inat(root, 2018), "inat18",
         {"train_val2018/Birds/7/a.jpg": "Pica pica", "train_val2018/Birds/9/b.jpg": "Corvus corax"},
         {"train_val2018/Birds/9/c.jpg": "Corvus corax"}),
        (lambda root: inat(root, 2021), "inat",
         {"train_val2021/Birds/7/a.jpg": "Pica pica", "train_val2021/Birds/9/b.jpg": "Corvus corax"},
         {"train_val2021/Birds/9/c.jpg": "Corvus corax"}),
        (food, "food101", {"images/apple_pie/1.jpg": "apple_pie", "images/waffles/2.jpg": "waffles"},
         {"images/waffles/3.jpg": "waffles"}),
        (cars, "cars", {"cars_train/00001.jpg": "Acura RL", "cars_train/00002.jpg": "AM General Hummer"},
         {"cars_test/00001.jpg": "AM General Hummer"}),
        (domainnet, "domainnet", {"clipart/anvil/a.jpg": "anvil", "clipart/axe/b.jpg": "axe"},
         {"clipart/axe/c.jpg": "axe"}),
        (lists, "list", {"in/b.jpg": "bad", "in/one two.jpg": "good"}, {"in/c.jpg": "bad"}),
    ],
    ids=["folder", "imagenet", "inat18", "inat21", "food101", "cars", "domainnet", "list"],
)  # fmt: skip
def test_layouts_are_recognised(
    tmp_path: Path, make: Any, layout: str, train: dict[str, str], val: dict[str, str]
) -> None:
    make(tmp_path)
    data = open_data(options(tmp_path))
    assert data.layout == layout
    assert (pairs(data, "train"), pairs(data, "val")) == (train, val)


def test_labels_that_are_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    domainnet(tmp_path)
    data = open_data(options(tmp_path))
    assert (data.labels, data.classes) == (["2", "10"], ["axe", "anvil"])
    assert sorted({"b", "10", "1", "a", "01", "001"}, key=_order) == ["001", "01", "1", "10", "a", "b"]


def test_a_list_and_its_val_list_may_lie_anywhere(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.jpg", "a/two.jpg", "b/three.jpg")
    (tmp_path / "a/mine.txt").write_text("one.jpg x\ntwo.jpg y\n")
    (tmp_path / "b/theirs.txt").write_text("three.jpg x\n")
    data = open_data(options(tmp_path / "a/mine.txt", val=str(tmp_path / "b/theirs.txt")))
    assert pairs(data, "train") == {"one.jpg": "x", "two.jpg": "y"}
    assert pairs(data, "val") == {"../b/three.jpg": "x"}
    with pytest.raises(ValueError, match=r"add --val VAL.txt"):
        open_data(options(tmp_path / "a/mine.txt"))


def test_the_train_list_takes_file_names_and_paths(tmp_path: Path) -> None:
    imagenet(tmp_path)
    touch(tmp_path, "train/n01/n01_2.JPEG", "train/n02/n02_2.JPEG")
    chosen = tmp_path / "1percent.txt"
    chosen.write_text("n02_2.JPEG\nn01/n01_1.JPEG\ntrain/n02/n02_1.JPEG\n")
    data = open_data(options(tmp_path, train_list=str(chosen)))
    assert list(pairs(data, "train")) == ["train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG", "train/n02/n02_2.JPEG"]
    assert len(data.splits["val"]) == 2
    chosen.write_text("n01_1.JPEG\n\nn09_1.JPEG\n")
    with pytest.raises(ValueError, match=r"1percent.txt, line 3: n09_1.JPEG is none of the training images"):
        open_data(options(tmp_path, train_list=str(chosen)))
    touch(tmp_path, "train/n02/n01_1.JPEG")
    with pytest.raises(ValueError, match=r"line 1: n01_1.JPEG could be 2 of the training images"):
        open_data(options(tmp_path, train_list=str(chosen)))


def test_repeated_shared_and_absent_images_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "train.txt").write_text("a.jpg 0\nb.jpg 5\nb.jpg 5\nc.jpg 7\n")
    (tmp_path / "val.txt").write_text("b.jpg 5\n")
    data = open_data(options(tmp_path))
    counted = report(data)
    assert counted["train"]["images_per_class"] == {"0": 1, "5": 1, "7": 1} and counted["train"]["lines_repeated"] == 1
    assert counted["val"]["classes_without_images"] == 2 and counted["images_in_both_splits"] == 1
    assert "images_in_both_splits" not in report(replace(data, splits={"val": data.splits["val"]}))


def test_unreadable_and_missing_images_follow_the_limit(tmp_path: Path) -> None:
    write_root(tmp_path / "root", 3, 2)
    broken = tmp_path / "root/train/red/00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = open_data(options(tmp_path / "root"))
    before = data.splits["train"].fingerprint()
    with pytest.raises(ValueError, match=r"1 of 15 images .* more than the limit"):
        find_unreadable(data, 0.01, tmp_path / "bad.txt", workers=0)
    bad = find_unreadable(data, 0.1, tmp_path / "bad.txt", workers=0)
    assert bad == ["train/red/00.png"] and (tmp_path / "bad.txt").read_text().startswith(str(broken))
    without_unreadable(data, bad)
    assert len(data.splits["train"]) == 8 and report(data)["train"]["images_unreadable"] == 1
    assert data.splits["train"].fingerprint() != before and len(data.splits["val"]) == 6


def test_the_fingerprint_follows_labels_but_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_root(tmp_path / name, 2, 1)
    one, two = (open_data(options(tmp_path / name)) for name in ("one", "two"))
    assert one.splits["train"].fingerprint() == two.splits["train"].fingerprint()
    two.splits["train"].labels[0] = 2
    assert one.splits["train"].fingerprint() != two.splits["train"].fingerprint()


def unknown_class(root: Path) -> None:
    folder(root)
    touch(root, "val/cats/x.jpg")


def one_class(root: Path) -> None:
    touch(root, "train/cat/a.jpg", "val/cat/b.jpg")


def two_labels(root: Path) -> None:
    touch(root, "a.jpg", "b.jpg")
    (root / "train.txt").write_text("a.jpg x\nb.jpg y\n./a.jpg z\n")
    (root / "val.txt").write_text("b.jpg y\n")


def no_label(root: Path) -> None:
    touch(root, "a.jpg", "b.jpg")
    (root / "train.txt").write_text("a.jpg x\nb.jpg\n")
    (root / "val.txt").write_text("b.jpg y\n")


def flat_val(root: Path) -> None:
    touch(root, "train/cat/a.jpg", "train/dog/b.jpg", "val/ILSVRC_1.jpg")


def loose(root: Path) -> None:
    folder(root)
    touch(root, "train/stray.jpg")


def no_val(root: Path) -> None:
    touch(root, "train/cat/a.jpg", "train/dog/b.jpg")


def two_layouts(root: Path) -> None:
    folder(root)
    lists(root)


def two_domains(root: Path) -> None:
    domainnet(root)
    (root / "sketch_train.txt").write_text("sketch/axe/d.jpg 2\n")


def damaged_json(root: Path) -> None:
    inat(root, 2018)
    (root / "train2018.json").write_text('{"images": [')


def wrong_json(root: Path) -> None:
    inat(root, 2018)
    (root / "val2018.json").write_text('{"images": []}')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unknown_class, r"class 'cats' of the val images \(val/cats/x.jpg\) is none of the 2 .* did you mean 'cat'"),
        (one_class, r"one class only, 'cat'"),
        (two_labels, r"a.jpg is labelled both 'x' and 'z'"),
        (no_label, r"train.txt, line 2: 'b.jpg' is not `path label`"),
        (flat_val, r"images without class folders, ILSVRC_1.jpg"),
        (loose, r"1 images in .* outside of the class folders, stray.jpg"),
        (no_val, r"no folder val \(or test\)"),
        (two_layouts, r"could be list or folder: name one with --layout"),
        (two_domains, r"lists of clipart, sketch: choose one with --domain"),
        (damaged_json, r"train2018.json is no readable JSON"),
        (wrong_json, r"val2018.json is not in iNaturalist's format"),
        (lambda root: None, r"none of the known layouts"),
        (lambda root: root.rmdir(), r"does not exist"),
        (lambda root: write_classes(root, 1), r"none of the known layouts .* make train/CLASS/ and val/CLASS/"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, make: Any, message: str) -> None:
    (tmp_path / "root").mkdir()
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        open_data(options(tmp_path / "root"))


def test_a_domain_is_of_domainnet_only(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / f"{split}.jpg").touch()
    with pytest.raises(UserError, match="--domain clipart goes with DomainNet"):
        open_data(options(tmp_path, domain="clipart"))


def test_a_named_layout_or_domain_decides(tmp_path: Path) -> None:
    two_layouts(tmp_path)
    assert open_data(options(tmp_path, layout="list")).layout == "list"
    with pytest.raises(ValueError, match="has no DOMAIN_train.txt"):
        open_data(options(tmp_path, layout="domainnet"))
    with pytest.raises(ValueError, match="did you mean 'folder'"):
        open_data(options(tmp_path, layout="folders"))


def test_the_recipes_domain_is_taken_where_it_is_there(tmp_path: Path) -> None:
    two_domains(tmp_path)
    assert open_data(options(tmp_path), domain="clipart").classes == ["axe", "anvil"]
    with pytest.raises(ValueError, match="did you mean 'clipart'"):
        open_data(options(tmp_path, domain="clip"))
