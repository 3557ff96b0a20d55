"""Reading COCO files: flaws of single annotations are dropped and counted, flaws of the file are errors."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from splitmask_backbones.errors import UserError
from tests.helpers.det_data import coco_json, write_root
from tools.cli import start_log
from tools.detection import splits
from tools.detection.coco import read_coco
from tools.detection.evaluate import coco_ap, ground_truth
from tools.detection.rle import decode_window, parse_counts, rle_flaw, to_mask
from tools.detection.targets import make_target
from tools.detection.transforms import Placement


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_gaps_in_category_ids_become_labels_in_order(tmp_path: Path) -> None:
    split = read_coco(write(tmp_path, coco_json()), tmp_path)
    assert split.categories == [(3, "cat"), (7, "dog")]
    first, second = split.images[1].instances
    assert (first.label, second.label) == (1, 0)  # annotations 1 and 2: categories 7 and 3
    assert not split.dropped.kinds


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"image_id": 999}, "unknown image"),
        ({"image_id": [1]}, "unknown image"),
        ({"category_id": 4}, "unknown category"),
        ({"category_id": None}, "unknown category"),
        ({"bbox": [5, 5, 0, 9]}, "no area"),
        ({"bbox": [5, 5, 9, -2]}, "no area"),
        ({"bbox": [64, 5, 9, 9]}, "box outside the image"),
        ({"bbox": [-9, 5, 9, 9]}, "box outside the image"),
        ({"bbox": [float("nan"), 5, 9, 9]}, "NaN"),
        ({"bbox": [5, 5, float("inf"), 9]}, "NaN"),
        ({"bbox": [5, 5, 9]}, "a box of 3 numbers, not of x, y, width, height"),
        ({"bbox": None}, "no box"),
        ({"segmentation": []}, "no polygon"),
        ({"segmentation": None}, "no polygon"),
        ({"segmentation": [[]]}, "no polygon"),
        ({"segmentation": [[1, 1, 5, 5]]}, "no polygon"),
        ({"segmentation": [[1, 1, 5, 5, float("nan"), 2]]}, "NaN"),
        ({"segmentation": [[1, 1, 5, 5, 9, 9]]}, "no area"),
        ({"segmentation": [[100, 1, 120, 1, 120, 9]]}, "polygon outside the image"),
        ({"segmentation": [[1, 1, 1e15, 1, 1e15, 9]]}, "polygon outside the image"),
        ({"segmentation": {"size": [64, 48], "counts": [64 * 48]}}, "wrong RLE size"),
        ({"segmentation": {"size": [48, 64], "counts": [5, 5]}}, "broken RLE"),
        ({"segmentation": {"size": [48, 64], "counts": "not an RLE"}}, "broken RLE"),
        ({"segmentation": {"size": [48, 64], "counts": [48 * 64]}}, "no area"),
        ({"segmentation": "mask_001.png"}, "a segmentation that is the name of a mask file"),
        ({"segmentation": {"points": [1, 2]}}, "a segmentation that is an object with points"),
        ({"iscrowd": "perhaps"}, "a crowd flag that is neither 0 nor 1"),
    ],
)
def test_a_flawed_annotation_is_dropped_and_named(tmp_path: Path, change: dict[str, Any], kind: str) -> None:
    content = coco_json()
    content["annotations"][1] |= change
    split = read_coco(write(tmp_path, content), tmp_path)
    assert split.dropped.kinds == {kind: [1, content["annotations"][1]["id"]]}
    assert sum(len(image.instances) for image in split.images) == len(content["annotations"]) - 1


def test_a_box_partly_outside_is_clipped_and_counted(tmp_path: Path) -> None:
    content = coco_json()
    content["annotations"][0]["bbox"] = [-6, 40, 20, 20]
    split = read_coco(write(tmp_path, content), tmp_path)
    assert split.images[0].instances[0].box == (0, 40, 14, 48)
    assert split.corrected.kinds == {"box clipped to the image": [1, 100]} and not split.dropped.kinds


def test_training_and_evaluation_use_one_box(tmp_path: Path) -> None:
    """A box of 1e9 around a small object; training on one box and being measured against another gave an AP of 25."""
    content = coco_json()
    content["annotations"][0]["bbox"][2:] = [1e9, 1e9]
    x, y = content["annotations"][0]["bbox"][:2]
    split = read_coco(write(tmp_path, content), tmp_path)
    record = split.images[0]
    size = (record.height, record.width)
    trained = make_target(record, Placement(size, size, (0, 0), size, size)).boxes[0].tolist()
    evaluated = ground_truth(split)["annotations"][0]["bbox"]
    assert trained == [x, y, 64, 48] and evaluated == [x, y, 64 - x, 48 - y]


@pytest.mark.parametrize("area", [1e18, 10**18, float("inf"), 48 * 64 + 1])
def test_an_area_larger_than_the_image_is_that_of_the_mask(tmp_path: Path, area: float) -> None:
    """COCO's ranges end at 1e10: no object was in one, and the AP was None."""
    content = coco_json()
    honest = read_coco(write(tmp_path, content), tmp_path)
    for annotation in content["annotations"]:
        annotation["area"] = area
    split = read_coco(write(tmp_path, content), tmp_path)
    count = len(content["annotations"])
    assert split.corrected.kinds == {"area larger than the image, that of the mask taken": [count, 100]}
    for record, expected in zip(split.images, honest.images, strict=True):
        assert [i.area for i in record.instances] == [i.area for i in expected.instances]
    found = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.9}
        for entry in ground_truth(split)["annotations"]
    ]
    assert coco_ap(split, found)["bbox"]["AP"] == coco_ap(split, found)["segm"]["AP"] == 100


@pytest.mark.parametrize("area", [None, 0, -3.0, float("nan"), True, "9"])
def test_an_area_that_is_not_there_is_that_of_the_mask(tmp_path: Path, area: Any) -> None:
    content = coco_json()
    expected = float(content["annotations"][0]["area"])
    content["annotations"][0]["area"] = area
    split = read_coco(write(tmp_path, content), tmp_path)
    assert split.images[0].instances[0].area == expected and not split.corrected.kinds


def test_what_was_corrected_is_one_warning_and_one_entry_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = coco_json()
    for annotation in content["annotations"][2:4]:
        annotation["bbox"][2] = 1e9
    content["annotations"][5]["area"] = 1e18
    split = read_coco(write(tmp_path, content), tmp_path)
    start_log()  # as the tool does
    splits.warn_about("train", split)
    assert capsys.readouterr().err.splitlines() == [
        "warning: train: 2 annotations corrected: box clipped to the image (first id 102)",
        "warning: train: 1 annotation corrected: area larger than the image, that of the mask taken (first id 105)",
    ]
    report = splits.report(split, [])
    assert report["annotations_corrected"]["box clipped to the image"] == {"count": 2, "first_id": 102}
    assert report["annotations_used"] == len(content["annotations"]) and report["annotations_dropped"] == {}


def test_images_that_are_listed_twice_are_named(tmp_path: Path, capsys: Any) -> None:
    """What one entry says is missing in the other: objects become background."""
    root = write_root(tmp_path / "root")
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 99})
    path.write_text(json.dumps(content))
    train = splits.Location(path, root / "train")
    read = splits.read_splits({"train": train, "val": train})
    start_log()  # as the tool does
    splits.warn_about("train", read["train"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: train: 1 image files are listed under several ids, 000.png for one")
    assert len(lines) == 1


def test_classes_without_an_object_are_named(tmp_path: Path, capsys: Any) -> None:
    content = coco_json()
    content["categories"] += [{"id": 20 + number, "name": f"rare {number}"} for number in range(7)]
    for annotation in content["annotations"]:
        annotation["category_id"] = 3
    split = read_coco(write(tmp_path, content), tmp_path)
    start_log()  # as the tool does
    splits.warn_about("val", split)
    assert capsys.readouterr().err == "warning: val: no object of dog, rare 0, rare 1, rare 2, rare 3 and 3 more\n"


def test_usable_polygons_of_an_annotation_stay(tmp_path: Path) -> None:
    content = coco_json()
    good = content["annotations"][0]["segmentation"][0]
    content["annotations"][0]["segmentation"] = [[], good, [1, 2]]
    split = read_coco(write(tmp_path, content), tmp_path)
    assert split.images[0].instances[0].segmentation == [good]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"no valid JSON \(.*line 1"),
        ("[]", "holds a list"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "'images' is empty"),
        (coco_json() | {"categories": []}, "'categories' is empty"),
        (coco_json() | {"categories": [{"id": 3, "name": "a"}] * 2}, "category id 3 is there twice"),
        (coco_json() | {"annotations": []}, "no usable annotation"),
    ],
)
def test_a_flawed_file_is_an_error(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_coco(write(tmp_path, content), tmp_path)


def test_duplicate_image_ids_and_missing_sizes_are_errors(tmp_path: Path) -> None:
    content = coco_json()
    content["images"][2]["id"] = content["images"][1]["id"]
    with pytest.raises(UserError, match="image id 11 is there twice"):
        read_coco(write(tmp_path, content), tmp_path)
    content = coco_json()
    del content["images"][2]["height"]
    with pytest.raises(UserError, match="image 12 .*needs 'height' and 'width'"):
        read_coco(write(tmp_path, content), tmp_path)


def test_validation_must_have_the_training_categories(tmp_path: Path) -> None:
    path = write(tmp_path, coco_json())
    with pytest.raises(UserError, match="category 3 is 'cat', in the training annotations it is 'tiger'"):
        read_coco(path, tmp_path, [(3, "tiger"), (7, "dog")])
    with pytest.raises(UserError, match="category 'dog' has id 7, in the training annotations it has 1007"):
        read_coco(path, tmp_path, [(3, "cat"), (1007, "dog")])
    read_coco(path, tmp_path, [(3, "cat"), (7, "dog"), (8, "dog")])  # a name may be there twice
    split = read_coco(path, tmp_path, [(3, "cat")])
    assert set(split.dropped.kinds) == {"unknown category"}


def test_ids_of_merged_files_are_renumbered_and_what_is_the_same_is_dropped(tmp_path: Path) -> None:
    """Three files that each began at id 1: 15 of 18 objects were dropped as duplicates."""
    content = coco_json(9)
    assert len(content["annotations"]) == 18
    for index, annotation in enumerate(content["annotations"]):
        annotation["id"] = 1 + index % 3
    content["annotations"].append(dict(content["annotations"][0]))
    del content["annotations"][4]["id"]
    split = read_coco(write(tmp_path, content), tmp_path)
    assert sum(len(image.instances) for image in split.images) == 18
    assert split.corrected.kinds == {
        "a duplicate id with other content, renumbered": [14, 1],
        "no id of its own, numbered": [1, None],
    }
    assert split.dropped.kinds == {"a duplicate, id and content": [1, 1]}
    assert len({entry["id"] for entry in ground_truth(split)["annotations"]}) == 18


def test_ids_and_names_as_text_are_matched(tmp_path: Path) -> None:
    content = coco_json()
    content["annotations"][0] |= {"image_id": "10", "category_id": "3"}
    content["annotations"][1] |= {"image_id": 11.0}
    content["annotations"][3] |= {"image_id": "002.png"}
    content["annotations"][2] |= {"category_id": "cat"}
    content["images"][0] |= {"height": "48", "width": 64.0}
    split = read_coco(write(tmp_path, content), tmp_path)
    assert not split.dropped.kinds and split.corrected.kinds == {"ids or names matched as text": [4, 100]}
    assert len(split.images[2].instances) == 3
    assert [i.label for i in split.images[1].instances] == [1, 0]
    assert (split.images[0].height, split.images[0].width) == (48, 64)
    content["images"][1]["id"] = "10 "  # now "10" is two images
    content["images"][3]["file_name"] = "002.png"  # and so is this name
    split = read_coco(write(tmp_path, content), tmp_path)
    assert split.dropped.kinds == {"unknown image": [4, 100]}
    content["annotations"][0] |= {"image_id": 10}  # told by the number itself, where "10" is two images
    assert read_coco(write(tmp_path, content), tmp_path).dropped.kinds == {"unknown image": [3, 101]}


def test_crowds_alone_and_boxes_alone_are_named(tmp_path: Path) -> None:
    content = coco_json()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match=r"no usable annotation \(12 with iscrowd=1"):
        read_coco(write(tmp_path, content), tmp_path)
    for annotation in content["annotations"]:
        annotation |= {"iscrowd": 0, "segmentation": [], "area": None}
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=r"12 with no polygon.*masks=false trains a box-only detector"):
        read_coco(path, tmp_path)
    split = read_coco(path, tmp_path, with_masks=False)
    x1, y1, x2, y2 = split.images[0].instances[0].box
    assert split.images[0].instances[0].area == (x2 - x1) * (y2 - y1) and not split.dropped.kinds


def test_the_collector_is_as_it_was(tmp_path: Path) -> None:
    read_coco(write(tmp_path, coco_json()), tmp_path)
    assert gc.isenabled()
    with pytest.raises(UserError):
        read_coco(write(tmp_path, "{"), tmp_path)
    assert gc.isenabled()


def test_compressed_counts_are_parsed_as_by_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 40, 2))
        mask = np.asfortranarray((rng.random((height, width)) < rng.random()).astype(np.uint8))
        counts = coco_mask.encode(mask)["counts"]
        runs = parse_counts(counts.decode())
        assert runs is not None and sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
        assert np.array_equal(to_mask({"size": [height, width], "counts": runs.tolist()}, height, width), mask)
        assert parse_counts(counts[:-1] + b"~~") is None or rle_flaw(
            {"size": [height, width], "counts": counts[:-1] + b"~~"}, height, width
        )


def test_a_run_length_mask_with_its_size_as_floats_is_decoded() -> None:
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (6, 8), np.uint8))
    rle = {"size": [6.0, 8.0], "counts": coco_mask.encode(mask)["counts"].decode()}
    assert rle_flaw(rle, 6, 8) is None
    assert np.array_equal(decode_window(rle, (2, 1, 7, 5)), mask[1:5, 2:7])


def test_a_root_is_found_under_both_names(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    for name in ("train", "val"):
        (root / name).rename(root / f"{name}2017")
        (root / "annotations" / f"instances_{name}.json").rename(root / "annotations" / f"instances_{name}2017.json")
    found = splits.locate(str(root))
    assert found["val"].json_path == root / "annotations" / "instances_val2017.json"
    train = f"{found['train'].json_path}+{found['train'].image_dir}"
    assert splits.locate(train, f"{found['val'].json_path}+{found['val'].image_dir}") == found
    with pytest.raises(UserError, match="add --val"):
        splits.locate(train)
    with pytest.raises(UserError, match="--train-json needs --train-images"):
        splits.locate(str(root), train_json="x.json")
    with pytest.raises(UserError, match="has no train split"):
        splits.locate(str(tmp_path))


def test_one_folder_and_one_file_belong_together_whatever_the_year(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_train2017.json")
    found = splits.locate(str(root))
    assert found["train"] == splits.Location(root / "annotations" / "instances_train2017.json", root / "train")
    shutil.copy(root / "annotations" / "instances_train2017.json", root / "annotations" / "instances_train2014.json")
    with pytest.raises(UserError, match="has no train split"):
        splits.locate(str(root))


def test_the_layouts_of_roboflow_and_cvat_are_found(tmp_path: Path) -> None:
    root = write_root(tmp_path / "roboflow")
    for name, folder in (("train", "train"), ("val", "valid")):
        (root / name).rename(root / folder)
        (root / "annotations" / f"instances_{name}.json").rename(root / folder / "_annotations.coco.json")
    found = splits.locate(str(root))
    assert found["val"] == splits.Location(root / "valid" / "_annotations.coco.json", root / "valid")
    assert len(splits.read_splits(found)["train"].images) == 6
    root = write_root(tmp_path / "cvat")
    (root / "images").mkdir()
    for name in ("train", "val"):
        (root / name).rename(root / "images" / name)
    found = splits.locate(str(root))
    assert found["train"] == splits.Location(root / "annotations/instances_train.json", root / "images/train")


@pytest.mark.parametrize(
    ("file", "kind"), [("train/a.xml", "Pascal VOC or CVAT XML"), ("labels/train/a.txt", "YOLO text")]
)
def test_annotations_of_another_format_in_a_root_are_named(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("x")
    with pytest.raises(UserError, match=f"has no train split: .* holds {kind} files: export as COCO"):
        splits.locate(str(tmp_path))


def test_images_missing_or_of_another_size_follow_the_limit(tmp_path: Path, capsys: Any) -> None:
    root = write_root(tmp_path / "root")
    (root / "train" / "001.png").unlink()
    (root / "val" / "002.png").write_bytes((root / "train" / "000.png").read_bytes())
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    content["images"][2]["height"] = 50
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    read = splits.read_splits(splits.locate(str(root)))
    start_log()  # as the tool does
    unusable = splits.check_split_images(read, 0.5, tmp_path / "bad.txt", workers=0)
    assert unusable == {"train": ["001.png"], "val": ["002.png"]}
    assert "is 64x48 pixels, its annotations say 64x50" in (tmp_path / "bad.txt").read_text()
    assert capsys.readouterr().err.count("warning: ") == 2
    with pytest.raises(UserError, match="--max-bad-fraction"):
        splits.check_split_images(read, 0.01, tmp_path / "bad.txt", workers=0)
    splits.without(read["train"], unusable["train"])
    assert [image.file_name for image in read["train"].images] == [f"00{i}.png" for i in (0, 2, 3, 4, 5)]


def test_images_that_exif_turns_and_exchanged_sides_are_told(tmp_path: Path) -> None:
    root = write_root(tmp_path / "root")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "train" / "000.png") as image:
        image.save(root / "train" / "000.png", exif=exif)
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    content["images"][0] |= {"width": 48, "height": 64}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    read = splits.read_splits(splits.locate(str(root)))
    splits.check_split_images(read, 0.5, tmp_path / "bad.txt", workers=0)
    listed = (tmp_path / "bad.txt").read_text()
    assert "is 48x64 pixels, its annotations say 64x48: its EXIF data turn it: take them away if its" in listed
    assert "is 64x48 pixels, its annotations say 48x64: height and width of its entry are exchanged" in listed
