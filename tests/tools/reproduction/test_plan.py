"""Every row of every table becomes commands that the tools accept; costs against counted models; data on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.multicrop import local_size
from pretrain.methods.build import build_encoder
from pretrain.methods.dino import Dino
from pretrain.methods.splitmask import SplitMask
from pretrain.recipes import RECIPES, Recipe, get_recipe
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import create_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from tests.helpers.plans import check
from tools.benchmarks.pretrain import flops_per_image
from tools.reproduction import cost
from tools.reproduction.cost import pretraining_cost
from tools.reproduction.paper import find_table, tables
from tools.reproduction.paper.schema import Row
from tools.reproduction.plan import Planner, known_files, parse_files
from tools.reproduction.sets import SETS, Places, write_list
from tools.running.job import Job
from tools.running.planned import planned_recipe

PUBLISHED = ("deit_small", "deit_base", "beit_base", "dino_small", "dino_base", "mocov3_base")
ROWS = [(table.name, row.name) for table in tables().values() for row in table.rows]


def planner(tmp_path: Path, **options) -> Planner:
    files = {name: tmp_path / f"{name}.pth" for name in (*PUBLISHED, "dalle")}
    return Planner(tmp_path / "out", Places([str(tmp_path / "data")], ["coco", "imagenet"]), files, **options)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=["/".join(pair) for pair in ROWS])
def test_every_row_becomes_commands_that_the_tools_accept(table: str, row: str, tmp_path: Path) -> None:
    plan = planner(tmp_path, seeds=2)
    found = find_table(table).row(row)
    jobs = plan.jobs([found])
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for index, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:index]), "each job after those that it needs"
        assert job.folder.is_relative_to(tmp_path / "out")
    tools = {job.tool.removesuffix(".py") for job in jobs}
    measured = {cell.measured.tool for cell in found.cells} - {"hours"}
    assert measured <= tools
    finetunings = [job for job in jobs if job.tool == f"{found.cells[0].measured.tool}.py" and "none" not in job.name]
    assert finetunings
    for job in jobs:
        check(job)


def argv_of(jobs: list[Job], name: str) -> str:
    return " ".join(next(job for job in jobs if job.name == name).argv)


def test_a_row_by_hand(tmp_path: Path) -> None:
    jobs = planner(tmp_path, seeds=2).jobs([find_table("coco").row("vit_base_beit_coco")])
    assert [job.name for job in jobs] == [
        "pretrain/coco_beit_vit_base",
        "det/coco_3x_vit_base_beit_coco_seed0",
        "det/coco_3x_vit_base_beit_coco_seed1",
    ]
    assert argv_of(jobs, "pretrain/coco_beit_vit_base").startswith("--recipe coco --model vit_base --method beit ")
    detection = argv_of(jobs, "det/coco_3x_vit_base_beit_coco_seed1")
    assert detection.startswith("det_configs/coco_3x_vit_base_beit_coco.py ")
    assert f"--weights {tmp_path}/out/pretrain/coco_beit_vit_base/encoder.safetensors --seed 1" in detection


def test_what_rows_share_is_made_once(tmp_path: Path) -> None:
    plan = planner(tmp_path)
    rows: list[Row] = [row for table in tables().values() for row in table.rows]
    jobs = plan.jobs(rows)
    pretrainings = [job.name for job in jobs if job.tool == "pretrain.py"]
    assert pretrainings.count("pretrain/coco_splitmask_vit_small") == 1
    # Table 5, the transfer table and the sample efficiency all fine-tune SplitMask's iNat-19 or COCO ViT-S there.
    assert sum(job.name.startswith("cls/inat19_from_coco_splitmask_vit_small") for job in jobs) == 1
    assert {job.name for job in jobs if job.tool == "convert.py"} == {f"convert/{name}" for name in PUBLISHED}


def test_files_of_the_user_replace_jobs(tmp_path: Path) -> None:
    own = tmp_path / "mine.safetensors"
    own.write_bytes(b"")
    plan = planner(tmp_path)
    plan.files["coco_splitmask_vit_small"] = own
    jobs = plan.jobs([find_table("coco").row("vit_small_splitmask_coco")])
    assert [job.tool for job in jobs] == ["train_det.py"]
    assert str(own) in jobs[0].argv


def test_what_is_missing_is_named_once(tmp_path: Path) -> None:
    plan = Planner(tmp_path / "out", Places([str(tmp_path)], ["coco", "imagenet"]))
    plan.jobs([find_table("coco").row("vit_small_beit_imagenet"), find_table("coco").row("vit_small_deit")])
    assert [what.split(":")[0] for what in plan.missing] == [
        "data set imagenet",
        "DALL-E's encoder for imagenet_beit_vit_small_tokenizer-dalle",
        "data set coco",
        "DEIT's published vit_small",
    ]


def test_files_that_the_folders_of_a_set_lack_are_named(tmp_path: Path) -> None:
    places = Places([str(tmp_path)], ["inat19", "cars"])
    for name, file in (("inat19", "train2019.json"), ("cars", "cars_train")):
        (tmp_path / name).mkdir()
        missing = places.missing(name)
        assert missing is not None and str(tmp_path / name / file) in missing
    (tmp_path / "inat19/annotations").mkdir()
    (tmp_path / "inat19/annotations/train2019.json").touch()
    (tmp_path / "cars/stanford_cars/cars_train").mkdir(parents=True)
    assert places.missing("inat19") is None and places.missing("cars") is None
    assert places.pretraining("cars", tmp_path)[0] == ["--data", str(tmp_path / "cars/stanford_cars/cars_train")]


def test_wrong_names_propose_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown --weights name 'deit_smal': did you mean 'deit_small'"):
        parse_files(["deit_smal=x"])
    with pytest.raises(UserError, match="is not NAME=FILE"):
        parse_files(["x.pth"])
    with pytest.raises(UserError, match="unknown data set 'coc': did you mean 'coco'"):
        Places(["coc=/x"], ["coco"])
    with pytest.raises(UserError, match="row of table coco 'vit_small_splitmask': did you mean"):
        find_table("coco").row("vit_small_splitmask")
    with pytest.raises(UserError, match="is a second root"):
        Places(["a", "b"], ["coco"])
    with pytest.raises(UserError, match="--batch-siz"):
        planned_recipe(["--recipe", "coco", "--data", "x", "--batch-siz", "4"])
    assert {"dalle", "deit_base", "coco_splitmask_vit_small"} <= set(known_files())


def test_the_root_may_be_the_only_set(tmp_path: Path) -> None:
    assert Places([str(tmp_path)], ["coco"]).folder("coco") == tmp_path
    (tmp_path / "coco").mkdir()
    assert Places([str(tmp_path)], ["coco"]).folder("coco") == tmp_path / "coco"
    assert Places([str(tmp_path), "inat19=/x"], ["coco", "inat19"]).folder("inat19") == Path("/x")


def test_lists_name_existing_training_images(tmp_path: Path) -> None:
    def write(name: str, text: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    cases = {
        "food101": ("meta/train.txt", "pie/1\n\npie/2\n", ["images/pie/1.jpg", "images/pie/2.jpg"]),
        "sketch": ("sketch_train.txt", "sketch/a b/1.jpg 7\n", ["sketch/a b/1.jpg"]),
        "imagenet_1percent": (
            "1percent.txt",
            "n01_5.JPEG\ntrain/n02/n02_1.JPEG\n",
            ["train/n01/n01_5.JPEG", "train/n02/n02_1.JPEG"],
        ),
    }
    for name, (listed, text, expected) in cases.items():
        write(listed, text)
        for image in expected:
            write(image)
        destination = tmp_path / "out" / f"{name}.txt"
        assert write_list(name, tmp_path, destination) == len(expected)
        assert destination.read_text().splitlines() == [str(tmp_path / image) for image in expected]
    planner = Planner(tmp_path / "out", Places([f"food101={tmp_path}"], ["food101"]))
    planner.lists["food101"] = destination = tmp_path / "out" / "food101.txt"
    before = destination.stat().st_mtime_ns
    planner.write_lists()
    assert destination.stat().st_mtime_ns == before
    write("meta/train.txt", "pie/2\n")
    planner.write_lists()  # the list of now, and not the one that lay there
    assert destination.read_text() == f"{tmp_path}/images/pie/2.jpg\n"
    (tmp_path / "sketch/a b/1.jpg").unlink()
    with pytest.raises(UserError, match=r"sketch_train.txt: .*1.jpg does not exist \(1 of 1\)"):
        write_list("sketch", tmp_path, tmp_path / "out" / "sketch.txt")


def test_sizes_and_recipes_fit_together() -> None:
    assert set(SETS) <= set(RECIPES)
    for name, spec in SETS.items():
        about = RECIPES[name][0]
        if any(letter.isdigit() for letter in about) and "%" not in about:
            assert f"{spec.num_images:,}" in about


@pytest.mark.parametrize(
    "values", [{}, {"mask": "uniform", "mask_ratio": 0.75}, {"inpaint_weight": 0.0}, {"model": "vit_tiny"}]
)
def test_operations_equal_the_counted_ones(values: dict) -> None:
    recipe = Recipe(batch_size=8, vocab_size=64).override({"img_size": 64, **values})
    encoder = create_encoder(recipe.model, img_size=recipe.img_size)
    tokenizer = Tokenizer(random_projection(recipe.vocab_size, 768, 0)) if recipe.inpaint_weight else None
    method = SplitMask(encoder, tokenizer, recipe.decoder_depth, recipe.inpaint_weight, recipe.match_weight)
    seen = 16 - round(16 * recipe.mask_ratio)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    batch = {
        "image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8),
        "ids_a": order[:, :seen],
        "ids_b": order[:, seen : 2 * seen],
    }
    assert cost.pretraining_operations(recipe) == pytest.approx(sum(flops_per_image(method, batch).values()))


@pytest.mark.parametrize("values", [{}, {"img_size": 96, "local_crops": 3, "embed_dim": 96, "depth": 2}])
def test_operations_of_dino_equal_the_counted_ones(values: dict) -> None:
    recipe = get_recipe("small").override({"method": "dino", "dino_outputs": 128, "img_size": 64, **values})
    models = [build_encoder(recipe) for _ in range(2)]
    method = Dino(*models, num_outputs=128, momentum=0.9, temperature=0.04, total_steps=1, frozen_steps=0)
    side = local_size(recipe.img_size, 16)
    batch = {"large": torch.zeros(1, 2, 3, recipe.img_size, recipe.img_size, dtype=torch.uint8)}
    batch["small"] = torch.zeros(1, recipe.local_crops, 3, side, side, dtype=torch.uint8)

    def count(model: torch.nn.ModuleDict, *crops: str) -> float:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for name in crops:
                method.outputs(model, batch[name])
        return counter.get_total_flops()

    expected = 3 * count(method.student, "large", "small") + count(method.teacher, "large")
    assert cost.pretraining_operations(recipe) == pytest.approx(expected)


def test_the_papers_rate_gives_the_papers_hours() -> None:
    planned = pretraining_cost(["--recipe", "imagenet", "--model", "vit_base", "--data", "x"], "imagenet")
    hours = planned["operations"] / cost.paper_rate() / 3600
    assert hours == pytest.approx(34.0 * 16, rel=1e-3)  # an epoch drops its last incomplete batch
    assert 1e13 < cost.paper_rate() < 1.2e14  # what a GPU of 2021 can do


@pytest.mark.parametrize("model", ["vit_tiny", "vit_small"])
def test_parameters_equal_the_encoders(model: str) -> None:
    counted = sum(parameter.numel() for parameter in create_encoder(model, img_size=224).parameters())
    assert cost.encoder_parameters(ENCODERS[model]) == counted


def test_a_probe_needs_room_for_its_features(tmp_path: Path) -> None:
    plan = Planner(tmp_path / "out", Places([str(tmp_path)], ["imagenet"]))
    jobs = plan.jobs([find_table("ablation").row("inpaint")])
    # one float32 vector of ViT-B per image and layer
    assert {job.tool: job.scratch for job in jobs if job.scratch} == {"probe.py": 1_281_167 * 12 * 768 * 4}


def test_extra_options_change_the_plan_and_its_estimate(tmp_path: Path) -> None:
    row = find_table("coco").row("vit_small_splitmask_coco")
    whole = planner(tmp_path).jobs([row])
    short = planner(tmp_path, extra={"pretrain": ["--steps", "7"], "train_det": ["--steps", "5"]}).jobs([row])
    assert [job.num_steps for job in short] == [7, 5]
    assert [job.num_steps for job in whole] == [3000 * (118_287 // 2048), 36 * (118_287 // 16)]
    for job, other in zip(short, whole, strict=True):
        assert job.operations / job.num_steps == pytest.approx(other.operations / other.num_steps)
    segmentor = [find_table("ade20k").row("vit_base_random")]
    given = {"train_seg": ["steps=5", "batch_size=4"]}
    assert [(job.num_steps, job.batch_size) for job in planner(tmp_path, extra=given).jobs(segmentor)] == [(5, 4)]
