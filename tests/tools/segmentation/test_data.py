"""Pairs, labels, classes and results of the segmentation tool: hand-made cases with known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.seg_data import make_data
from tools.cli import start_log
from tools.segmentation.check import check_splits, without
from tools.segmentation.class_weights import class_weights
from tools.segmentation.classes import Classes, find_classes, make_classes
from tools.segmentation.labels import check_values, read_label, to_indices, to_training_labels
from tools.segmentation.layout import Layout, find_split, is_ade20k, make_layout

CLASSES = make_classes(["a", "b", "c"], None, False, "test")


def check(root, split="train", classes=CLASSES, fraction=0.0):
    splits, counts = check_splits({split: find_split(root, split)}, classes, fraction, root / "bad_images.txt")
    return splits[split], counts[split]


def test_counts_are_those_of_the_files(tmp_path):
    make_data(tmp_path)
    labels = [np.asarray(Image.open(tmp_path / f"annotations/train/{i}.png")) for i in range(3)]
    split, counts = check(tmp_path)
    assert split.pairs == [(f"{i}.jpg", f"{i}.png") for i in range(3)]
    assert counts["ignored_pixels"] == sum(int((label == 255).sum()) for label in labels)
    for index, name in enumerate("abc"):
        assert counts["classes"][name]["pixels"] == sum(int((label == index).sum()) for label in labels)


def test_palette_label_is_read_as_indices(tmp_path):
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([250, 240, 230, 10, 20, 30, 40, 50, 60] + [0] * (768 - 9))
    image.save(tmp_path / "p.png")
    assert read_label(tmp_path / "p.png").tolist() == indices.tolist()


def test_bilevel_and_16_bit_labels(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    Image.fromarray(np.array([[300, 7]], dtype=np.uint16)).save(tmp_path / "16.png")
    assert read_label(tmp_path / "1.png").tolist() == [[1, 0]]
    assert read_label(tmp_path / "16.png").tolist() == [[300, 7]]
    with pytest.raises(ValueError, match=r"16\.png holds the value 300"):
        check_values(tmp_path / "16.png", read_label(tmp_path / "16.png"), 10, False)


def test_reduce_zero_label_as_mmseg_does():
    values = np.array([0, 1, 150, 255])
    assert to_training_labels(values, True).tolist() == [255, 0, 149, 255]
    assert to_training_labels(values, False).tolist() == [0, 1, 150, 255]


@pytest.mark.parametrize(
    ("reduce_zero_label", "value", "fine"), [(False, 2, True), (False, 3, False), (True, 3, True), (True, 4, False)]
)
def test_highest_value_that_is_allowed(reduce_zero_label, value, fine):
    if fine:
        check_values("f.png", np.array([[0, value, 255]]), 3, reduce_zero_label)
    else:
        with pytest.raises(ValueError, match=f"f.png holds the value {value}"):
            check_values("f.png", np.array([[0, value, 255]]), 3, reduce_zero_label)


def test_colour_label_is_refused(tmp_path):
    make_data(tmp_path)
    Image.new("RGB", (12, 10)).save(tmp_path / "annotations/train/1.png")
    with pytest.raises(ValueError, match=r"annotations/train/1\.png is a colour image"):
        check(tmp_path)


def test_size_difference_is_refused(tmp_path):
    make_data(tmp_path)
    Image.new("L", (10, 12)).save(tmp_path / "annotations/val/2.png")
    with pytest.raises(ValueError, match=r"images/val/2\.jpg is 12 x 10 pixels.*10 x 12"):
        check(tmp_path, "val")


@pytest.mark.parametrize(
    ("gone", "match"), [("annotations/train/1.png", "1.jpg has no label"), ("images/val/0.jpg", "0.png has no image")]
)
def test_missing_partner_is_refused(tmp_path, gone, match):
    make_data(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match=match):
        find_split(tmp_path, gone.split("/")[1])


def test_missing_partners_are_listed(tmp_path):
    make_data(tmp_path, count=14)
    for i in range(12):
        (tmp_path / f"annotations/train/{i}.png").unlink()
    with pytest.raises(
        ValueError, match=r"12 files in .*images/train have no label in .*: 0\.jpg, 1\.jpg, 10\.jpg,.* and 2 m"
    ):
        find_split(tmp_path, "train")


def test_linked_folders_and_other_suffixes_are_said(tmp_path, capsys):
    """They were left out without a word."""
    make_data(tmp_path)
    make_data(tmp_path / "more")
    (tmp_path / "images/train/link").symlink_to(tmp_path / "more/images/train")
    (tmp_path / "images/train/a.heic").write_bytes(b"x")
    (tmp_path / "annotations/train/a.txt").write_bytes(b"x")
    start_log()
    split, _ = check(tmp_path)
    assert len(split.pairs) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"warning: {tmp_path}/images/train: 1 linked folders skipped (link)",
        f"warning: {tmp_path}/images/train: 1 other files skipped (suffixes found: .heic)",
        f"warning: {tmp_path}/annotations/train: 1 other files skipped (suffixes found: .txt)",
    ]
    for i in range(3):
        (tmp_path / f"annotations/train/{i}.png").rename(tmp_path / f"annotations/train/{i}.jpg")
    with pytest.raises(ValueError, match=r"have no label in .*4 other files skipped \(suffixes found: \.jpg, \.txt\)"):
        find_split(tmp_path, "train")


def test_cityscapes_as_it_is_unpacked(tmp_path):
    """Numbers of the label files become indices, void ones are ignored, other files of the folder left alone."""
    layout = Layout("leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit.png", "_gtFine_labelIds.png", "", (7, 8, 26))
    for split in ("train", "val"):
        for part, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"), ("gtFine", "gtFine_color")):
            folder = tmp_path / part / split / "ulm"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB" if part == "leftImg8bit" else "L", (4, 2)).save(folder / f"ulm_01_{suffix}.png")
    raw = np.array([[0, 7, 8, 26], [26, 33, 4, 7]], np.uint8)
    Image.fromarray(raw).save(tmp_path / "gtFine/train/ulm/ulm_01_gtFine_labelIds.png")
    split = find_split(tmp_path, "train", layout)
    assert split.pairs == [("ulm/ulm_01_leftImg8bit.png", "ulm/ulm_01_gtFine_labelIds.png")]
    labels = read_label(split.label_dir / split.pairs[0][1], split.label_ids)
    assert labels.tolist() == [[255, 0, 1, 2], [2, 255, 255, 0]]
    splits, counts = check_splits({"train": split}, CLASSES, 0.0, tmp_path / "bad_images.txt")
    assert splits["train"].label_ids == (7, 8, 26)
    assert [entry["pixels"] for entry in counts["train"]["classes"].values()] == [2, 1, 2]


def test_negative_numbers_are_no_class(tmp_path):
    Image.fromarray(np.array([[-1, 7]], np.int32)).save(tmp_path / "l.tif")
    assert read_label(tmp_path / "l.tif", (8, 7)).tolist() == [[255, 1]]


def test_lists_of_names_as_in_pascal_context(tmp_path):
    layout = Layout("JPEGImages", "Labels", names="Sets/{split}.txt")
    for folder, suffix in (("JPEGImages", "jpg"), ("Labels", "png")):
        (tmp_path / folder).mkdir()
        for i in range(5):
            Image.new("RGB" if suffix == "jpg" else "L", (4, 2)).save(tmp_path / folder / f"{i}.{suffix}")
    (tmp_path / "Sets").mkdir()
    (tmp_path / "Sets/train.txt").write_text("3\n1\n")
    (tmp_path / "Sets/val.txt").write_text("0\n9\n")
    (tmp_path / "Labels/2.png").unlink()  # in no list: not missed
    assert find_split(tmp_path, "train", layout).pairs == [("1.jpg", "1.png"), ("3.jpg", "3.png")]
    with pytest.raises(ValueError, match=r"1 names in .*val\.txt have no image in .*JPEGImages: 9:"):
        find_split(tmp_path, "val", layout)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"image": "x"}, "unknown layout key 'image': did you mean 'images'"),
        ({"images": "a", "labels": "b"}, "train and val are the same"),
        ({"label_ids": [1, 1]}, "a number twice"),
        ({"label_suffix": 3}, "layout.label_suffix must be text"),
    ],
)
def test_layouts_that_cannot_be_used(value, match):
    with pytest.raises(ValueError, match=match):
        make_layout(value)


def test_truncated_image_follows_the_limit(tmp_path):
    make_data(tmp_path, count=4, size=(64, 64))
    path = tmp_path / "images/train/2.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="1 of 4 images"):
        check(tmp_path, fraction=0.2)
    split, counts = check(tmp_path, fraction=0.25)
    assert [pair[0] for pair in split.pairs] == ["0.jpg", "1.jpg", "3.jpg"] and counts["unreadable_images"] == 1
    assert "2.jpg" in (tmp_path / "bad_images.txt").read_text()


def test_all_ignored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every pixel"):
        check(make_data(tmp_path, values=(255,)))


def test_folder_names_with_years_and_ade20k(tmp_path):
    split = find_split(make_data(tmp_path / "coco", names=("train2017", "val2017")), "val")
    assert split.image_dir.name == "val2017"
    ade = make_data(tmp_path / "ade", names=("training", "validation"), values=(0, 1, 150))
    assert is_ade20k(ade) and not is_ade20k(tmp_path / "coco")
    classes = find_classes(ade, None, {}, is_ade20k=True)
    assert len(classes.names) == 150 and classes.names[0] == "wall" and classes.reduce_zero_label
    check(ade, classes=classes)


def test_unknown_classes_ask_for_the_option(tmp_path):
    with pytest.raises(ValueError, match="--classes"):
        find_classes(make_data(tmp_path), None, {}, is_ade20k=False)


def test_class_file_wins_over_the_config(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"classes": ["x", "y"], "palette": [[1, 2, 3], [4, 5, 6]], "reduce_zero_label": True}))
    assert find_classes(None, str(path), {"classes": ["a"]}, False) == Classes(["x", "y"], [[1, 2, 3], [4, 5, 6]], True)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "is no JSON"),
        ('["a", "a"]', "twice"),
        ("{}", "must hold"),
        ('{"classes": ["a"], "palete": 1}', "did you mean 'palette'"),
        ('{"classes": ["a", "b"], "palette": [[1, 2, 3]]}', "the palette holds 1 colours for 2 classes"),
        ('{"classes": ["a"], "palette": [[1, 2, 300]]}', "values 0-255"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path, text, match):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        find_classes(None, str(tmp_path / "c.json"), {}, False)


def test_results_of_a_hand_made_confusion():
    pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
    from tools.segmentation.evaluate import ClassIoU

    # a: 3 of 4 right, 1 taken for b; b: 1 of 2 right, 1 taken for c; c does not occur in the labels.
    label = torch.tensor([[0, 0, 0, 0, 1, 1, 255]])
    predicted = torch.tensor([[0, 0, 0, 1, 1, 2, 0]])
    metric = ClassIoU()
    metric.dataset_meta = {"classes": ["a", "b", "c"]}
    results = metric.compute_metrics([metric.intersect_and_union(predicted, label, 3, 255)])
    assert results["per_class"] == {"a": pytest.approx(75.0), "b": pytest.approx(100 / 3), "c": None}
    assert results["mIoU"] == pytest.approx((75 + 100 / 3) / 2)
    assert results["mAcc"] == pytest.approx((75 + 50) / 2)
    assert results["aAcc"] == pytest.approx(100 * 4 / 6)


def test_many_pixels_of_a_class_are_counted_to_the_last():
    """2 ** 24 is where float32 stops counting in ones."""
    pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
    from mmseg.evaluation import IoUMetric

    from tools.segmentation.evaluate import ClassIoU

    label = torch.zeros(1, 4200, 5000, dtype=torch.uint8)
    label[:, :100] = 1
    predicted = torch.zeros_like(label)
    _, union, _, labelled = ClassIoU.intersect_and_union(predicted, label, 2, 255)
    assert labelled.tolist() == [4100 * 5000, 100 * 5000] and union[0] == 4200 * 5000
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 6, (1, 40, 50), generator=generator)
    label[:, 0] = 255
    predicted = torch.randint(0, 4, (1, 40, 50), generator=generator)
    mine, theirs = (of.intersect_and_union(predicted, label, 4, 255) for of in (ClassIoU, IoUMetric))
    for a, b in zip(mine, theirs, strict=True):
        assert a.tolist() == b.tolist()


def test_numbers_of_any_size_become_indices():
    values = np.array([[7, 2**31 - 1, -4], [9, 0, 8]])
    assert to_indices(values, (9, 7)).tolist() == [[1, 255, 255], [0, 255, 255]]


def test_names_may_be_listed_with_their_suffix(tmp_path):
    make_data(tmp_path, count=2, size=(64, 64))
    for split in ("train", "val"):
        names = sorted(path.name for path in (tmp_path / "images" / split).iterdir())
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    layout = make_layout({"names": "{split}.txt"})
    assert find_split(tmp_path, "train", layout).pairs == find_split(tmp_path, "train").pairs


def test_an_image_link_that_leads_nowhere_is_an_unreadable_image(tmp_path):
    make_data(tmp_path, count=4, size=(64, 64))
    image = tmp_path / "images/train/1.jpg"
    image.unlink()
    image.symlink_to(tmp_path / "gone.jpg")
    split = find_split(tmp_path, "train")
    assert len(split.fingerprint()) == 64
    found, _ = check_splits({"train": split}, CLASSES, 0.25, tmp_path / "bad_images.txt")
    assert len(found["train"].pairs) == 3


def test_what_a_run_left_out_stays_out_and_what_it_read_must_be_there(tmp_path):
    make_data(tmp_path, count=4, size=(64, 64))
    splits = {"train": find_split(tmp_path, "train")}
    found, _ = check_splits(without(splits, {"train": ["1.jpg"]}), CLASSES, 0.5, tmp_path / "bad.txt", is_resumed=True)
    assert [image for image, _ in found["train"].pairs] == ["0.jpg", "2.jpg", "3.jpg"]
    path = tmp_path / "images/train/2.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"2\.jpg could be read when the run started and cannot be now"):
        check_splits(splits, CLASSES, 0.5, tmp_path / "bad.txt", is_resumed=True)


def test_unreadable_images_of_both_splits_share_report_and_limit(tmp_path):
    make_data(tmp_path, count=4, size=(64, 64))
    for name in ("train/1.jpg", "val/3.jpg"):
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[:400])
    splits = {name: find_split(tmp_path, name) for name in ("train", "val")}
    with pytest.raises(ValueError, match="2 of 8 images"):
        check_splits(splits, CLASSES, 0.2, tmp_path / "bad_images.txt")
    check_splits(splits, CLASSES, 0.25, tmp_path / "bad_images.txt")
    named = [line.split("\t")[0] for line in (tmp_path / "bad_images.txt").read_text().splitlines()]
    assert named == [str(tmp_path / "images" / name) for name in ("train/1.jpg", "val/3.jpg")]


def test_unknown_name_in_a_config_file(tmp_path):
    pytest.importorskip("mmengine", reason="the extra 'segmentation' is not installed")
    from tools.segmentation.config import CONFIG_FOLDER, load_config

    path = tmp_path / "mine.py"
    path.write_text(f'_base_ = ["{CONFIG_FOLDER}/demo.py"]\nstpes = 5\n')
    with pytest.raises(ValueError, match="unknown name 'stpes': did you mean 'steps'"):
        load_config(path)
    path.write_text(f'_base_ = ["{CONFIG_FOLDER}/demo.py"]\n_half = 64\nimg_size = 2 * _half\n')
    config = load_config(path)
    assert config["img_size"] == 128 and "_half" not in config


def test_resized_labels_lie_where_the_image_does():
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    from splitmask_backbones.mmseg_resize import SegResize

    rng, offsets = np.random.default_rng(0), []
    for number in range(60):
        height, width = rng.integers(150, 260, 2)
        x, y = rng.uniform(40, (width - 40, height - 40))
        ys, xs = np.mgrid[:height, :width] + 0.5
        disc = ((xs - x) ** 2 + (ys - y) ** 2 < rng.uniform(10, 30) ** 2).astype(np.uint8)
        scale = (int(width * rng.uniform(0.5, 2)), int(height * rng.uniform(0.5, 2)))
        given = {"img": np.repeat(255 * disc[..., None], 3, 2), "gt_seg_map": disc, "seg_fields": ["gt_seg_map"]}
        found = SegResize(scale=scale, keep_ratio=number % 2 == 0)(given)
        bright, labels = found["img"][..., 0].astype(float), found["gt_seg_map"]
        assert labels.shape == bright.shape and set(np.unique(labels)) == {0, 1}
        ys, xs = np.mgrid[: labels.shape[0], : labels.shape[1]]
        offsets.append([(labels * at).sum() / labels.sum() - (bright * at).sum() / bright.sum() for at in (xs, ys)])
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05  # mmcv's: 0.5


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1), (1000, 7)])
def test_thin_images_keep_a_pixel_on_each_side(size):
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    from splitmask_backbones.mmseg_resize import SegResize

    results = SegResize(scale=(48, 36), keep_ratio=True).transform(
        {"img": np.zeros((size[1], size[0], 3), np.uint8), "gt_seg_map": np.ones((size[1], size[0]), np.uint8)}
    )
    factor = min(48 / max(size), 36 / min(size))
    expected = tuple(max(1, int(side * factor + 0.5)) for side in (size[1], size[0]))
    assert results["img"].shape[:2] == results["gt_seg_map"].shape == expected


def test_class_weights_of_hand_counted_labels(tmp_path):
    root = make_data(tmp_path, count=2, size=(4, 4))
    first, second = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    first[0] = 1  # a 12 of 16, b 4 of 16
    second[:] = 255
    second[0] = 0  # a 4 of 4 labelled
    for i, label in enumerate((first, second)):
        Image.fromarray(label).save(root / f"annotations/train/{i}.png")
    _, counts = check(root)
    shares = (16 / 20, 4 / 16)
    expected = [(sum(shares) / 2) / share for share in shares] + [1.0]  # c does not occur
    assert class_weights("median_frequency", counts) == pytest.approx(expected)
    assert class_weights("sqrt_median_frequency", counts) == pytest.approx([weight**0.5 for weight in expected])


def test_class_weighted_loss_is_torchs_mean_and_survives_ignored_pixels():
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    from tools.segmentation.model import ClassWeightedCrossEntropy

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(3, (2, 4, 5))
    labels[0, 1] = 255
    weights = [0.2, 1.0, 3.0]
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
    loss = ClassWeightedCrossEntropy(weights, loss_weight=0.4)
    torch.testing.assert_close(loss(logits, labels), 0.4 * expected)
    nothing = loss(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing == 0 and logits.grad.abs().max() == 0


def test_classes_by_the_name_of_a_data_set():
    pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")
    classes = find_classes(None, None, {"classes": "pcontext", "reduce_zero_label": True}, False)
    assert len(classes.names) == len(classes.palette) == 59 and classes.reduce_zero_label
    with pytest.raises(ValueError, match="did you mean 'cityscapes'"):
        find_classes(None, None, {"classes": "cityscape"}, False)


@pytest.mark.parametrize(
    ("words", "batch_size", "lr"),
    [
        ([], None, 7e-4),
        ([], 8, 3.5e-4),
        (["batch_size=32"], None, 1.4e-3),
        (["optim_wrapper.optimizer.lr=1e-4"], 8, 1e-4),
    ],
)
def test_lr_follows_the_batch_unless_it_is_given(words, batch_size, lr):
    pytest.importorskip("mmengine", reason="the extra 'segmentation' is not installed")
    from tools import train_seg
    from tools.segmentation.config import config_path
    from tools.segmentation.recipe import SegRecipe

    given = [] if batch_size is None else ["--batch-size", str(batch_size)]
    args = train_seg.parse_args(["folder_20k_vit_small", "--output", "x", *given, *words])
    assert SegRecipe.load(config_path(args.config)).override(vars(args)).lr == pytest.approx(lr)


@pytest.mark.parametrize("name", ["demo", "demo.py", "seg_configs/demo.py"])
def test_a_config_is_found_from_any_folder(name, tmp_path, monkeypatch):
    from tools.segmentation.config import CONFIG_FOLDER, config_path

    monkeypatch.chdir(tmp_path)
    assert config_path(name) == CONFIG_FOLDER / "demo.py"
    with pytest.raises(ValueError, match=r"config seg_configs/dem\.py does not exist: .*seg_configs/demo\.py"):
        config_path("seg_configs/dem.py")
