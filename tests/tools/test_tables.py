"""tools/tables.py on hand-made run folders: numbers by hand, deviations named, broken runs left out."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.recipes import get_recipe
from tests.helpers.in_process import run_tool
from tests.helpers.run_folders import write_detection, write_pretraining
from tools import tables as tool
from tools.classification.recipes import get_recipe as get_cls_recipe
from tools.reproduction import render
from tools.reproduction.deviations import deviations
from tools.reproduction.paper import find_table
from tools.reproduction.results import fill, others
from tools.reproduction.runs import Run, find_runs

ROW = "vit_small_splitmask_coco"
CONFIG = f"coco_3x_{ROW}"


def table_of(folder: Path, name: str = "coco"):
    runs, warnings = find_runs([folder])
    cells, used = fill(find_table(name), runs)
    return cells, others(runs, used), warnings


def test_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    encoder = write_pretraining(tmp_path / "pre", "coco", 118_287)
    for seed, box in enumerate((44.0, 45.0, 47.5)):
        numbers = (box, 66.0, 49.0, 40.0, 63.0, 43.0)
        write_detection(tmp_path / f"runs/{seed}", CONFIG, numbers, encoder, seed=seed, precision="bf16")
    cells, other, warnings = table_of(tmp_path)
    assert not other and not warnings
    assert {row for row, _ in cells} == {ROW}
    cell = cells[ROW, "box AP"]
    assert cell.values == [44.0, 45.0, 47.5]
    assert cell.remarks == ["precision bf16"]
    # mean 45.5; squares 2.25 + 0.25 + 4 = 6.5, over 2 = 3.25, root 1.803
    header, rows, footnotes = render.lines(find_table("coco"), cells)
    ours = rows[[row[0] for row in rows].index("ViT-S SplitMask, COCO") + 1]
    assert ours[1:4] == ["ours", "45.5 ± 1.8 (3) [1]", "66.0 ± 0.0 (3) [1]"]
    assert footnotes == ["[1] precision bf16"]
    assert header[2:] == ["box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75"]


def test_the_origin_decides_the_row_and_not_the_configs_name(tmp_path: Path) -> None:
    dino = write_pretraining(tmp_path / "dino", "coco", 118_287, method="dino")
    write_detection(tmp_path / "a", CONFIG, (1.0,) * 6, dino)
    write_detection(tmp_path / "b", CONFIG, (2.0,) * 6)
    cells, _, _ = table_of(tmp_path)
    assert {row: cell.values for (row, column), cell in cells.items() if column == "box AP"} == {
        "vit_small_dino_coco": [1.0],
        "vit_small_random": [2.0],
    }


def test_the_length_of_the_schedule_and_the_model_tell_rows_apart(tmp_path: Path) -> None:
    write_detection(tmp_path / "a", "coco_3x_vit_small_random", (1.0,) * 6)
    write_detection(tmp_path / "b", "coco_6x_vit_small_random", (2.0,) * 6)
    write_detection(tmp_path / "c", "coco_3x_vit_base_random", (3.0,) * 6)
    cells, other, _ = table_of(tmp_path)
    found = {row: cell.values for (row, column), cell in cells.items() if column == "box AP"}
    assert found == {"vit_small_random": [1.0], "vit_small_random_6x": [2.0], "vit_base_random": [3.0]}
    assert not other


def test_an_unknown_origin_falls_back_on_the_configs_name(tmp_path: Path) -> None:
    encoder = write_pretraining(tmp_path / "gone", "coco", 118_287)
    write_detection(tmp_path / "runs" / "a", "coco_3x_vit_small_deit", (1.0,) * 6, encoder)
    cells, _, _ = table_of(tmp_path / "runs")
    assert "origin is unknown" in cells["vit_small_deit", "box AP"].remarks[0]


def test_converted_weights_are_known_by_their_report(tmp_path: Path) -> None:
    weights = tmp_path / "w" / "encoder.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"deit")
    weights.with_name("encoder.safetensors.report.json").write_text(json.dumps({"family": "timm", "keys": []}))
    folder = write_detection(tmp_path / "run", "coco_3x_vit_base_random", (1.0,) * 6, weights)
    config = json.loads((folder / "config.json").read_text())
    config["free"]["weights"] = str(weights)
    (folder / "config.json").write_text(json.dumps(config))
    cells, _, _ = table_of(tmp_path)
    assert {row for row, _ in cells} == {"vit_base_deit"}
    assert [remark for cell in cells.values() for remark in cell.remarks if "--from deit" in remark]
    weights.with_name("encoder.safetensors.report.json").write_text(json.dumps({"family": "deit", "keys": []}))
    cells, _, _ = table_of(tmp_path)
    assert {row for row, _ in cells} == {"vit_base_deit"} and not cells["vit_base_deit", "box AP"].remarks


def test_encoders_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path: Path) -> None:
    for name, steps, seed, box in (("a", 1000, 0, 20.0), ("b", 1000, 1, 21.0), ("c", 16_000, 0, 40.0)):
        encoder = write_pretraining(tmp_path / f"pre_{name}", "own", 50, steps=steps, seed=seed)
        write_detection(tmp_path / name, "nuclei_tiny", (box,) * 6, encoder, images=50, seed=seed)
    shutil.copytree(tmp_path / "c", tmp_path / "copy")
    for name in ("x", "y"):  # two files of others
        (tmp_path / name).write_bytes(name.encode())
        write_detection(tmp_path / f"run_{name}", "nuclei_tiny", (ord(name),) * 6, tmp_path / name, images=50)
    _, other, _ = table_of(tmp_path)
    found = {tuple(entry.values["box AP"]): entry.remarks for entry in other}
    assert set(found) == {(20.0, 21.0), (40.0,), (120.0,), (121.0,)}
    assert found[40.0,] == ["1 repeated with the same seed: the first counts"]


def test_another_engine_is_a_deviation(tmp_path: Path) -> None:
    for number, engine in enumerate(("detectron2", "torchvision")):
        folder = write_detection(tmp_path / engine, "coco_3x_vit_small_random", (number,) * 6)
        config = json.loads((folder / "config.json").read_text()) | {"--engine": engine}
        (folder / "config.json").write_text(json.dumps(config))
    cells, other, _ = table_of(tmp_path)
    assert cells["vit_small_random", "box AP"].values == [0.0]
    assert [(entry.values["box AP"], entry.remarks) for entry in other] == [
        ([1.0], ["engine torchvision in place of detectron2"])
    ]


def test_a_supervised_pretraining_is_compared_with_its_recipe(tmp_path: Path) -> None:
    values = dataclasses.asdict(get_cls_recipe("imagenet_1percent").override({"epochs": 3}))
    config = {"command": "train_cls", "recipe": "imagenet_1percent", "values": values, "--weights": "0" * 64}
    run = Run(tmp_path, "train_cls", "inat19", {"values": dataclasses.asdict(get_cls_recipe("inat19"))}, {}, {})
    run.pretraining = config
    length = f"3 epochs in place of {get_cls_recipe('imagenet_1percent').epochs:,} epochs"
    assert deviations(run) == [f"pre-training: {length}", "pre-training: not from random init"]
    run.pretraining = config | {"values": values | {"epochs": get_cls_recipe("imagenet_1percent").epochs}}
    assert deviations(run) == ["pre-training: not from random init"]


def test_deviations_are_named(tmp_path: Path) -> None:
    encoder = write_pretraining(
        tmp_path / "pre", "coco", 80, steps=100, batch_size=256, drop_path=0.0, lr=1e-3, vocab_size=1024
    )
    write_detection(
        tmp_path / "run", CONFIG, (1.0,) * 6, encoder, images=79, steps=50, batch_size=8, img_size=480, lr=1e-4
    )
    cells, _, _ = table_of(tmp_path)
    assert sorted(cells[ROW, "mask AP"].remarks) == sorted(
        [
            "pre-training: 100 steps in place of 3,000 epochs",
            "pre-training: vocab_size 1,024 in place of 8,192",
            "pre-training: batch_size 256 in place of 2,048",
            "pre-training: drop_path 0 in place of 0.1",
            "pre-training: lr 0.001 in place of 0.0001875",  # 1.5e-3 * 256 / 2048
            "pre-training: 80 training images in place of 118,287",
            "50 steps in place of 36 epochs",
            "img_size 480 in place of 800",
            "batch_size 8 in place of 16",
            "lr 0.0001 in place of 5e-05",  # 1e-4 * 8 / 16
            "79 training images in place of 118,287",
        ]
    )


def test_a_scaled_lr_is_no_deviation_of_its_own(tmp_path: Path) -> None:
    write_detection(tmp_path / "run", "coco_3x_vit_small_random", (1.0,) * 6, batch_size=8)
    (run,), _ = find_runs([tmp_path])
    assert deviations(run, "coco") == ["batch_size 8 in place of 16"]


def test_runs_closest_to_the_recipe_win_and_the_others_are_listed(tmp_path: Path) -> None:
    write_detection(tmp_path / "short", "coco_3x_vit_small_random", (9.0,) * 6, steps=5)
    write_detection(tmp_path / "whole", "coco_3x_vit_small_random", (38.0,) * 6)
    cells, other, _ = table_of(tmp_path)
    assert cells["vit_small_random", "box AP"].values == [38.0]
    assert [entry.values["box AP"] for entry in other] == [[9.0]]
    assert other[0].remarks == ["5 steps in place of 36 epochs"]


def test_runs_on_other_data_are_not_averaged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = write_detection(tmp_path / name, "nuclei_tiny", (float(ord(name)),) * 6)
        config = json.loads((folder / "config.json").read_text())
        config["data"]["train"] = name
        (folder / "config.json").write_text(json.dumps(config))
    _, other, _ = table_of(tmp_path)
    assert sorted(entry.values["box AP"] for entry in other) == [[97.0], [98.0]]


def write_segmentation(folder: Path, miou: float, images: int = 20_210, **values: object) -> dict:
    """Writes a segmentor of the ADE20K table from random init, as tools/train_seg.py leaves it."""
    from tools.segmentation.config import config_path
    from tools.segmentation.recipe import SegRecipe

    name = "ade20k_160k_vit_base_random"
    recipe = SegRecipe.load(config_path(name)).values()
    record = {
        "command": "train_seg",
        "config": name,
        "--weights": "none",
        "values": recipe["values"] | values,
        "recipe_values": recipe["recipe_values"],
        "data": {"train": "a", "val": "b"},
        "encoder": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
        "free": {"weights": "none"},
    }
    record = json.loads(json.dumps(record))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps({"mIoU": miou, "aAcc": None}))
    (folder / "data_report.json").write_text(json.dumps({"train": {"images": images}}))
    return record


def test_segmentors_and_their_deviations(tmp_path: Path) -> None:
    write_segmentation(tmp_path / "a", 25.0, seed=0)
    write_segmentation(tmp_path / "b", 26.0, seed=1)
    cells, other, warnings = table_of(tmp_path, "ade20k")
    assert not other and not warnings
    assert {key: (cell.values, cell.remarks) for key, cell in cells.items()} == {
        ("vit_base_random", "mIoU"): ([25.0, 26.0], [])
    }
    for seed, name in enumerate(("a", "b")):
        changed = {"seed": seed, "steps": 80, "batch_size": 8, "lr": 3.5e-4, "tta": True}
        record = write_segmentation(tmp_path / name, 25.0, images=99, **changed)
        record["config_values"] = json.loads(json.dumps(record["recipe_values"]))
        record["recipe_values"]["optim_wrapper"]["paramwise_cfg"]["decay_rate"] = 0.9
        record["recipe_values"]["optim_wrapper"]["clip_grad"] = None
        record["recipe_values"]["model"]["auxiliary_head"] = None
        record["recipe_values"]["model"]["backbone"]["use_rel_pos"] = True
        (tmp_path / name / "config.json").write_text(json.dumps(record))
    cells, _, _ = table_of(tmp_path, "ade20k")
    assert sorted(cells["vit_base_random", "mIoU"].remarks) == [
        "80 steps in place of 160,000 steps",
        "99 training images in place of 20,210",
        "batch_size 8 in place of 16",  # 7e-4 * 8 / 16 is the lr that follows
        "model.auxiliary_head is not there",
        "model.backbone.use_rel_pos is there, which the config has not",
        "optim_wrapper.clip_grad is not there",
        "optim_wrapper.paramwise_cfg.decay_rate 0.9 in place of 0.65",
        "tested at several scales",
    ]


def test_a_config_that_tests_at_several_scales_is_not_in_the_row(tmp_path: Path) -> None:
    record = write_segmentation(tmp_path / "a", 25.0)
    record["config"] += "_ms"
    (tmp_path / "a/config.json").write_text(json.dumps(record))
    cells, other, _ = table_of(tmp_path, "ade20k")
    assert not cells and len(other) == 1


BROKEN = {
    "nan": '{"bbox": {"AP": NaN}, "segm": {"AP": 1.0}}',
    "null": '{"bbox": {"AP": null}, "segm": {"AP": 1.0}}',
    "text": '{"bbox": {"AP": "high"}, "segm": {"AP": 1.0}}',
    "list": "[1, 2]",
    "cut": '{"bbox": {"AP": 1',
    "empty": "",
}


def test_broken_runs_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_detection(tmp_path / "good", "coco_3x_vit_small_random", (38.0,) * 6)
    for name, text in BROKEN.items():
        write_detection(tmp_path / name, "coco_3x_vit_small_random", text, seed=1)
    missing = write_detection(tmp_path / "missing", "coco_3x_vit_small_random", (1.0,) * 6, seed=1)
    (missing / "results.json").unlink()
    config = write_detection(tmp_path / "config", "coco_3x_vit_small_random", (1.0,) * 6, seed=1)
    (config / "config.json").write_text("{")
    bare = write_detection(tmp_path / "bare", "coco_3x_vit_small_random", (1.0,) * 6, seed=1)
    (bare / "config.json").write_text('{"command": "train_det"}')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "vit"}')
    assert tool.main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert all(line.startswith("warning: ") and "left out" in line for line in lines)
    named = {Path(line.split(":")[1].strip()).name for line in lines}
    assert named == {*BROKEN, "missing", "config", "bare"}
    assert "38.0 (1)" in shown.out and "(2)" not in shown.out


DAMAGED = {
    "lr": {"values": {"batch_size": 16, "lr": "high"}},
    "batch": {"values": {"batch_size": "sixteen", "lr": 0.1}},
    "no_batch": {"values": {"lr": 0.1}},
    "data": {"data": [1]},
    "free": {"free": None, "--weights": "sha256:00"},
    "command": {"command": ["train_det"]},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_values_of_another_type_cost_no_other_run(name, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_detection(tmp_path / "good", "coco_3x_vit_small_random", (38.0,) * 6)
    damaged = write_detection(tmp_path / "damaged", "coco_3x_vit_small_random", (1.0,) * 6, seed=1)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | DAMAGED[name]))
    assert tool.main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "38.0 (1)" in shown.out and "(2)" not in shown.out
    if name == "command":  # the folder of another tool
        assert not shown.err
    else:
        assert shown.err.count("warning: ") == 1 and "damaged: config.json is damaged (" in shown.err


def test_a_run_made_twice_counts_once(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_detection(tmp_path / folder, "coco_3x_vit_small_random", (38.0 + seed,) * 6, seed=seed)
    cells, found, _ = table_of(tmp_path, "coco")
    cell = cells["vit_small_random", "box AP"]
    assert cell.values == [38.0, 39.0] and not found
    assert "1 repeated with the same seed: the first counts" in cell.remarks


def test_a_probe_and_a_holdout_are_compared_with_their_recipes(tmp_path: Path) -> None:
    values = {"seed": 0, "precision": "32", "steps": 3, "epochs": None, "lr": 9.0, "batch_size": 1024, "img_size": 32}
    probe = Run(tmp_path, "probe", "imagenet", {"values": values, "encoder": {}}, {}, {})
    assert deviations(probe) == [
        "3 steps in place of 100 epochs",
        "img_size 32 in place of 224",
        "lr 9 in place of 0.001",
    ]
    pretraining = write_pretraining(tmp_path / "pre", "coco", 118_287).parent
    config = json.loads((pretraining / "config.json").read_text()) | {"--holdout": 0.25}
    (pretraining / "config.json").write_text(json.dumps(config))
    (run,), _ = find_runs([tmp_path / "pre"])
    assert deviations(run) == ["25% of the images kept out"]


@pytest.mark.parametrize(
    ("name", "given"),
    [("demo", {}), ("small", {"match_weight": 0.0}), ("small", {"method": "dino"}), ("small", {"model": "vit_small"})],
)
def test_what_a_recipe_brings_along_is_no_deviation(name: str, given: dict[str, Any], tmp_path: Path) -> None:
    values = dataclasses.asdict(get_recipe(name).override(given))
    config = {"command": "pretrain", "recipe": name, "values": values, "encoder": {}}
    assert deviations(Run(tmp_path, "pretrain", name, config, {}, {})) == []


def test_a_probes_data_and_its_one_kind_of_number(tmp_path: Path) -> None:
    def write(name: str, labels: list[str]) -> None:
        (tmp_path / name).mkdir()
        config = {"command": "probe", "values": {}, "encoder": {}, "data": {"labels": labels}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "results.json").write_text('{"layers": [{"layer": 0, "knn": 3.0, "linear": null}]}')

    write("a", [f"n{i:08}" for i in range(1000)])
    write("b", ["cat", "dog"])
    write("c", [str(i) for i in range(1000)])
    runs, warnings = find_runs([tmp_path])
    assert not warnings and [run.setting for run in runs] == ["imagenet", "2 classes", "1000 classes"]
    (tmp_path / "a" / "results.json").write_text('{"layers": []}')
    (tmp_path / "b" / "config.json").write_text("[" * 100_000)
    runs, warnings = find_runs([tmp_path])
    assert len(runs) == 1 and len(warnings) == 2
    assert any("no number for layers.knn or layers.linear" in warning for warning in warnings)


def test_hours_and_best_layer_of_the_ablation(tmp_path: Path) -> None:
    write_pretraining(tmp_path / "pre", "imagenet", 1_281_167, model="vit_base", match_weight=0.0)
    probe = {
        "command": "probe",
        "--weights": hashlib.sha256((tmp_path / "pre/encoder.safetensors").read_bytes()).hexdigest(),
        "values": {"seed": 0, "precision": "32"},
        "encoder": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
        "data": {"labels": [f"n{i:08}" for i in range(1000)]},
    }
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/config.json").write_text(json.dumps(probe))
    layers = [{"layer": 0, "knn": 3.0, "linear": 10.0}, {"layer": 1, "knn": None, "linear": 46.0}]
    (tmp_path / "probe/results.json").write_text(json.dumps({"layers": layers}))
    cells, _, warnings = table_of(tmp_path, "ablation")
    assert not warnings
    assert {key: cell.values for key, cell in cells.items()} == {
        ("inpaint", "linear"): [46.0],
        # 1000 images at 0.5 images/s and 1000 at 1 image/s: 3000 s
        ("inpaint", "hours on 16 GPUs"): [pytest.approx(3000 / 3600)],
    }


def test_a_run_without_a_number_is_not_among_those_that_have_it(tmp_path: Path) -> None:
    """Seeds, values and folders of a line of the CSV belong together."""
    for seed in range(3):
        write_pretraining(tmp_path / f"pre{seed}", "imagenet", 1_281_167, model="vit_base", match_weight=0.0, seed=seed)
    (tmp_path / "pre0/metrics.jsonl").unlink()
    cells, _, _ = table_of(tmp_path, "ablation")
    cell = cells["inpaint", "hours on 16 GPUs"]
    assert [run.folder.name for run in cell.runs] == ["pre1", "pre2"] and len(cell.values) == 2
    assert not any("repeated" in remark for remark in cell.remarks)


def test_csv_has_every_cell_unrounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, box in enumerate((38.25, 38.75)):
        write_detection(tmp_path / f"{seed}", "coco_3x_vit_small_random", (box,) * 6, seed=seed)
    output = tmp_path / "coco.csv"
    assert tool.main([str(tmp_path), "--table", "coco", "--format", "csv", "--output", str(output)]) == 0
    assert capsys.readouterr().out == output.read_text()
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert len(rows) == 14 * 6
    (row,) = [row for row in rows if (row["row"], row["column"]) == ("vit_small_random", "mask AP")]
    assert (row["paper"], row["mean"], row["n"], row["seeds"]) == ("35.6", "38.5", "2", "0; 1")
    assert float(row["spread"]) == pytest.approx(0.125**0.5)
    (empty,) = [row for row in rows if (row["row"], row["column"]) == ("vit_base_deit", "mask AP")]
    assert (empty["paper"], empty["mean"], empty["n"]) == ("41", "", "0")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{empty}"], "error: no run in "),
        (["{empty}/nothing"], "is not a folder"),
        (["{empty}", "--table", "coca"], "unknown table 'coca': did you mean 'coco'?"),
        (["{empty}", "--format", "html"], "unknown format 'html'"),
        (["{empty}", "--output", "{empty}"], "cannot be written"),
    ],
)
def test_errors_are_kind(tmp_path: Path, argv: list[str], message: str) -> None:
    done = run_tool(tool.main, *(text.format(empty=tmp_path) for text in argv))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and message in done.stderr
