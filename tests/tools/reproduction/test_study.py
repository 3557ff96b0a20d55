"""The small study: equal budgets, commands that the tools accept, table and pictures from hand-made runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from pretrain.recipes import METHOD_VALUES, get_recipe
from splitmask_backbones.errors import UserError
from tests.helpers.drawn import note
from tests.helpers.plans import check
from tools.common.spread import mean_and_spread, shown
from tools.reproduction import study_report
from tools.reproduction.study import (
    ABLATION,
    BUDGETS,
    FEW_LABELS,
    HEADS,
    METHODS,
    ROWS,
    SHARES,
    Budget,
    Length,
    Study,
    finetuning_folder,
    missing,
    picture_jobs,
    run_folder,
    study_jobs,
)
from tools.running.executor import Executor
from tools.running.planned import planned_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Returns a root with validation pictures of both sets."""
    root = tmp_path / "data"
    for name, head in HEADS.items():
        (root / name / head.pictures).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (24, 16), (30 * i, 0, 0)).save(root / name / head.pictures / f"{i:02d}.png")
    return root


def on_both(*rows: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(HEADS, rows)


def own_rows(budget: Budget) -> dict[str, tuple[str, ...]]:
    """The rows of a budget that need no encoder from elsewhere."""
    return {name: tuple(row for row in rows if not ROWS[row].given) for name, rows in budget.rows.items()}


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def pairs(argv: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(zip(argv[::2], argv[1::2], strict=True))


@pytest.mark.parametrize("size", sorted(BUDGETS))
def test_every_row_has_the_budget_and_commands_that_work(size: str, data: Path, tmp_path: Path) -> None:
    budget = BUDGETS[size]
    rows = own_rows(budget)
    study = Study(size, data, tmp_path / "out", rows, budget.seeds)
    jobs = study_jobs(study)
    every = [row for data_name in HEADS for row in rows[data_name]]
    pretrainings = [row for row in every if ROWS[row].argv is not None]
    finetunings = len(every) + sum(row in FEW_LABELS for row in every) * (len(SHARES) - 1)
    assert len(jobs) == budget.seeds * (finetunings + len(pretrainings))
    assert len({job.name for job in jobs}) == len({job.folder for job in jobs}) == len(jobs)
    images = {
        (data_name, int(option(s.argv, "--steps")) * int(option(s.argv, "--batch-size")))
        for s in jobs
        for data_name in HEADS
        if s.tool == "pretrain.py" and f"/{data_name}/" in s.name
    }
    assert len(images) == 2, "the same images seen in every pre-training on a data set"
    lengths = {(s.tool, "longer" in s.name, option(s.argv, "--steps")) for s in jobs if s.tool != "pretrain.py"}
    assert len(lengths) == 2 + every.count("random_longer")
    done: set[str] = set()
    for job in jobs:
        check(job)
        assert set(job.needs) <= done
        if job.tool != "pretrain.py":
            row, data_name, seed, _ = job.name.split("/")
            before = study.output / (ROWS[row].encoder_of or row) / data_name / seed / "pretrain/encoder.safetensors"
            assert option(job.argv, "--weights") == (str(before) if job.needs else "none")
        if job.tool == "train_det.py":
            assert option(job.argv, "--engine") == "torchvision", "the same on every machine"
        done.add(job.name)
    for job in picture_jobs(study):
        check(job)
        assert job.needs and set(job.needs) <= done, "pictures wait for their training, however many jobs there are"


def test_the_rows_differ_in_what_they_are_about(data: Path, tmp_path: Path) -> None:
    jobs = study_jobs(Study("gpu", data, tmp_path / "out", on_both(*METHODS), 1))
    given = {job.name.split("/")[0]: job.argv for job in jobs if job.name.endswith("nuclei/seed0/pretrain")}
    assert set(given) == {"dino", "beit", "inpaint", "match", "full"}
    assert option(given["inpaint"], "--match-weight") == "0" and option(given["match"], "--inpaint-weight") == "0"
    assert option(given["beit"], "--method") == "beit" and "--method" not in given["full"]


def test_shares_of_the_labels_share_the_pre_training(data: Path, tmp_path: Path) -> None:
    study = Study("cpu", data, tmp_path / "out", {"nuclei": ("random", "match", "full")}, 1, shares=(0.1, 1.0))
    jobs = {job.name: job for job in study_jobs(study)}
    few, all_labels = (jobs[f"full/nuclei/seed0/train_det{suffix}"] for suffix in ("_10_percent", ""))
    assert few.argv == (*all_labels.argv, "--labels", "0.1") and "--labels" not in all_labels.argv
    assert few.needs == all_labels.needs == ("full/nuclei/seed0/pretrain",)
    assert few.folder == finetuning_folder(study.output, "full", "nuclei", 0, 0.1) != all_labels.folder
    assert [name for name in jobs if "percent" in name] == [
        f"{row}/nuclei/seed0/train_det_10_percent" for row in ("random", "full")
    ]
    check(few)


def test_rows_of_the_ablation_change_one_value_and_work(data: Path, tmp_path: Path) -> None:
    rows = ("full", *ABLATION)
    jobs = study_jobs(Study("cpu", data, tmp_path / "out", {"nuclei": rows}, 1, shares=(1.0,)))
    assert len(jobs) == 2 * (1 + len(ABLATION)) and all("nuclei" in job.name for job in jobs)
    whole = pairs(tuple(jobs[0].identity()[1:]))
    for pretraining, finetuning in zip(jobs[2::2], jobs[3::2], strict=True):
        check(pretraining)
        check(finetuning)
        row = ROWS[pretraining.name.split("/")[0]]
        expected = pairs(row.argv or ())
        if row.length != 1:
            expected |= {("--steps", str(round(row.length * BUDGETS["cpu"].pretrain["nuclei"].steps)))}
        if row.rate != 1:
            expected |= {("--base-lr", f"{row.rate * get_recipe('small').base_lr:g}")}
        assert expected and pairs(tuple(pretraining.identity()[1:])) - whole == expected
        assert "none" not in finetuning.argv


@pytest.mark.parametrize(("size", "pretraining"), [("cpu", "32"), ("gpu", "bf16")])
def test_precision_is_the_sizes_or_the_one_given(size: str, pretraining: str, data: Path, tmp_path: Path) -> None:
    jobs = study_jobs(Study(size, data, tmp_path / "out", on_both("full"), 1))
    found = {job.tool: option(job.argv, "--precision") for job in jobs}
    assert found == {"pretrain.py": pretraining, "train_det.py": "32", "train_seg.py": "32"}
    jobs = study_jobs(Study(size, data, tmp_path / "out", on_both("full"), 1, precision="bf16"))
    assert {option(job.argv, "--precision") for job in jobs} == {"bf16"}


def test_rates_are_those_of_the_data_set(data: Path, tmp_path: Path) -> None:
    rows = on_both("full", "lr_lower", "beit")
    jobs = {job.name: job for job in study_jobs(Study("cpu", data, tmp_path / "out", rows, 1))}
    for name, rate, beit in (("nuclei", 4e-3, 1), ("camvid", 1.6e-2, 0.25)):
        for row, factor in (("full", 1), ("lr_lower", 0.25), ("beit", beit)):
            recipe = planned_recipe(jobs[f"{row}/{name}/seed0/pretrain"].argv)
            assert recipe.base_lr == pytest.approx(rate * factor)


def test_a_method_keeps_a_rate_of_its_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHOD_VALUES["dino"], "base_lr", 1e-3)
    jobs = {job.name: job for job in study_jobs(Study("cpu", data, tmp_path / "out", on_both("dino"), 1))}
    for name, rate in (("nuclei", 1e-3), ("camvid", 4e-3)):
        recipe = planned_recipe(jobs[f"dino/{name}/seed0/pretrain"].argv)
        assert recipe.base_lr == pytest.approx(rate)


RATES_ON_CAMVID = dict.fromkeys(("random", "random_longer"), "0.001") | dict.fromkeys(
    ("full", "full_longer", "beit"), "0.002"
)


def test_each_start_is_fine_tuned_at_its_own_best_rate(data: Path, tmp_path: Path) -> None:
    for size in BUDGETS:
        for row, camvid in RATES_ON_CAMVID.items():
            jobs = study_jobs(Study(size, data, tmp_path / "out", on_both(row), 1, shares=(1.0,)))
            rates = {text for job in jobs for text in job.argv if "lr=" in text}
            assert rates == {"lr=0.002", f"optim_wrapper.optimizer.lr={camvid}"}


def test_what_an_older_recipe_made_is_not_taken_for_done(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = study_jobs(Study("cpu", data, output, {"nuclei": ("full",)}, 1))[0]
    recipe = planned_recipe(job.argv)
    assert recipe.steps == BUDGETS["cpu"].pretrain["nuclei"].steps
    job.folder.mkdir(parents=True)
    (job.folder / "encoder.safetensors").touch()
    (output / "steps.json").write_text(json.dumps({job.name: {"identity": job.identity(), "seconds": 1.0}}))
    values = dataclasses.asdict(recipe)

    def check_with(**changes: object) -> None:
        config = {"command": "pretrain", "values": {k: v for k, v in (values | changes).items() if v != "unknown"}}
        (job.folder / "config.json").write_text(json.dumps(config))
        Executor(output).check([job])

    check_with()
    with pytest.raises(UserError, match=r"match_weight 0.5 and not 0.1"):
        check_with(match_weight=0.5)
    with pytest.raises(UserError, match=r"base_lr None and not 0.004"):
        check_with(base_lr="unknown")


def test_the_estimate_knows_that_dino_is_dearer(data: Path, tmp_path: Path) -> None:
    budget = BUDGETS["cpu"]
    full, dino = (study_jobs(Study("cpu", data, tmp_path, {"nuclei": (row,)}, 1))[0] for row in ("full", "dino"))
    assert full.seconds == budget.pretraining_seconds("nuclei") + budget.start_seconds
    assert dino.seconds > 1.5 * full.seconds


def test_the_estimate_knows_that_bf16_is_faster_on_a_cpu(data: Path, tmp_path: Path) -> None:
    seconds = {
        (size, precision): sum(job.seconds for job in study_jobs(made))
        for size in BUDGETS
        for precision in (None, "32", "bf16")
        if (made := Study(size, data, tmp_path, on_both("full"), 1, precision=precision))
    }
    assert seconds["cpu", "bf16"] == pytest.approx(0.7 * seconds["cpu", "32"])
    assert seconds["cpu", "32"] == seconds["cpu", None]
    assert seconds["gpu", "bf16"] == seconds["gpu", None]  # what it is measured in


def test_the_longer_row_pays_for_the_pre_training() -> None:
    budget = dataclasses.replace(
        BUDGETS["cpu"],
        pretrain={"nuclei": Length(100, 64, 3.0), "camvid": Length(200, 64, 1.0)},
        finetune={"nuclei": Length(20, 4, 2.0), "camvid": Length(30, 8, 0.5)},
    )
    assert budget.finetuning_steps("nuclei", "random") == budget.finetuning_steps("nuclei", "full") == 20
    assert budget.finetuning_steps("nuclei", "random_longer") == 20 + 150  # 300 s of 2 s each
    assert budget.finetuning_steps("camvid", "random_longer") == 30 + 400  # 200 s of 0.5 s each
    assert budget.finetuning_seconds("nuclei", "random_longer") == 340.0 == 40.0 + budget.pretraining_seconds("nuclei")


def test_longer_rows_begin_with_what_the_others_begin_with(data: Path, tmp_path: Path) -> None:
    rows = {"camvid": ("random", "random_longer", "full", "full_longer")}
    jobs = {job.name: job for job in study_jobs(Study("cpu", data, tmp_path / "out", rows, 1, shares=(1.0,)))}
    assert sorted(jobs) == sorted(
        [*(f"{row}/camvid/seed0/train_seg" for row in rows["camvid"]), "full/camvid/seed0/pretrain"]
    )
    short, longer = jobs["full/camvid/seed0/train_seg"], jobs["full_longer/camvid/seed0/train_seg"]
    assert short.needs == longer.needs == ("full/camvid/seed0/pretrain",)
    assert option(short.argv, "--weights") == option(longer.argv, "--weights")
    assert option(longer.argv, "--steps") == option(jobs["random_longer/camvid/seed0/train_seg"].argv, "--steps")
    alone = study_jobs(Study("cpu", data, tmp_path / "out", {"camvid": ("full_longer",)}, 1))
    assert [job.name for job in alone] == ["full/camvid/seed0/pretrain", "full_longer/camvid/seed0/train_seg"]


def test_budgets_take_about_as_long_as_they_promise(data: Path, tmp_path: Path) -> None:
    for size, at_once, minutes in (("cpu", 2, 360), ("gpu", 3, 160)):
        budget = BUDGETS[size]
        jobs = study_jobs(Study(size, data, tmp_path / "out", own_rows(budget), budget.seeds, precision="bf16"))
        assert sum(job.seconds for job in jobs) / at_once < 60 * minutes


def test_missing_data_are_named(tmp_path: Path) -> None:
    study = Study("cpu", tmp_path, tmp_path / "out", on_both("random"), 1)
    assert [line.split(":")[0] for line in missing(study)] == [
        f"--data {tmp_path} holds no folder {name}" for name in HEADS
    ]
    assert len(study_jobs(study)) == 2 * len(SHARES)  # a plan needs none of them
    for name in HEADS:
        (tmp_path / name).mkdir()
    assert missing(study) == []


def test_what_others_do_is_a_row_like_any(data: Path, tmp_path: Path) -> None:
    given = tmp_path / "deit.pth"
    study = Study("cpu", data, tmp_path / "out", {"nuclei": ("imagenet", "lightly")}, 2, files={"imagenet": given})
    assert missing(study) == [f"--weights imagenet={given}: the file does not exist"]
    convert, *jobs = study_jobs(study)
    check(convert)
    assert convert.argv[:2] == (str(given), str(tmp_path / "out" / "imagenet" / "encoder.safetensors"))
    finetunings = [job for job in jobs if job.name.startswith("imagenet/")]
    assert [job.needs for job in finetunings] == [("imagenet",)] * 2
    sizes = [f"{name}={value}" for name, value in study.budget.encoder.items()]
    assert not set(sizes) & set(finetunings[0].argv), "the encoder given has sizes of its own"
    pretraining, finetuning = [job for job in jobs if job.name.startswith("lightly/nuclei/seed1/")]
    assert option(pretraining.argv, "--steps") == str(study.budget.pretraining_steps("nuclei", "full"))
    check(pretraining)
    assert finetuning.needs == (pretraining.name,)
    assert set(sizes) <= set(finetuning.argv)


def test_gains_are_those_of_the_same_seed(tmp_path: Path) -> None:
    """Two rows whose means are far apart by chance of the seeds, and whose seeds differ by 2 and 4."""
    found = {("random", 0): 10.0, ("random", 1): 30.0, ("random", 2): 90.0, ("full", 1): 34.0, ("full", 0): 12.0}
    for share in (0.1, 1.0):
        for (row, seed), value in found.items():
            folder = finetuning_folder(tmp_path, row, "camvid", seed, share)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps({"mIoU": value + share}))
    gains = study_report.read_gains(tmp_path, ("full", "beit"), 0.1)
    assert gains["camvid mIoU"] == {"full": pytest.approx({0: 2.0, 1: 4.0}), "beit": {}}
    text = study_report.gains_section(tmp_path, ("random", "full", "beit"))
    assert "| above random init | camvid mIoU |" in text
    assert "| SplitMask | 3.0 ± 1.4 (2) |" in text and "BEiT" not in text  # sqrt(2)
    assert study_report.gains_section(tmp_path, ("random", "beit")) == ""


def test_the_longer_row_is_compared_with_as_long_a_start_from_nothing(tmp_path: Path) -> None:
    for row, value in {"random": 10.0, "random_longer": 50.0, "full": 20.0, "full_longer": 49.0}.items():
        folder = finetuning_folder(tmp_path, row, "camvid", 0)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"mIoU": value}))
    text = study_report.gains_section(tmp_path, ("random", "random_longer", "full", "full_longer"))
    assert "| random init, longer | 40.0 (1) |" in text and "| SplitMask | 10.0 (1) |" in text
    assert "| SplitMask, longer (above random init, longer) | -1.0 (1) |" in text


def test_table_and_pictures(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, rows = tmp_path / "out", ("random", "full")
    study = Study("cpu", data, output, on_both(*rows), 2)
    box = {("random", 0): 1.0, ("random", 1): 3.0, ("full", 0): 5.0}
    for (row, seed), value in box.items():
        for name, results in (
            ("nuclei", {"bbox": {"AP": value}, "segm": {"AP": None}}),
            ("camvid", {"mIoU": 10 * value}),
        ):
            folder = run_folder(output, row, name, seed) / HEADS[name].tool
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results))
    values = study_report.read_values(output, rows)
    assert values == {
        "nuclei box AP": {"random": {0: 1.0, 1: 3.0}, "full": {0: 5.0}},
        "nuclei mask AP": {"random": {}, "full": {}},
        "camvid mIoU": {"random": {0: 10.0, 1: 30.0}, "full": {0: 50.0}},
    }
    study_report.write_table(output, values, rows)
    text = (output / "table.md").read_text()
    assert "| random init | 2.0 ± 1.4 (2) | - | 20.0 ± 14.1 (2) | - |" in text  # spread sqrt(2), sqrt(200)
    assert "| SplitMask | 5.0 (1) | - | 50.0 (1) |" in text
    assert "full,camvid mIoU,50.0,,1,50.0" in (output / "table.csv").read_text()
    for seed, steps in ((0, 100), (1, 400)):  # of another budget, and by a call with more seeds
        folder = run_folder(output, "full", "nuclei", seed) / "pretrain"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"values": {"steps": steps, "batch_size": 64}}))
        look = {"step": steps, "train_inpaint_gain": 0.25 + seed, "train_match_rank1": 0.5, "effective_rank": None}
        look["attention_entropy"] = 0.6 + 0.2 * seed
        (folder / "monitor.jsonl").write_text(json.dumps(look) + "\n")
    study_report.write_table(output, values, rows)
    text = (output / "table.md").read_text()
    assert "| 100 or 400 x 64 images | - | - | - |" in text  # what ran, not what is planned
    # Spreads sqrt(0.5), 0 and sqrt(0.02).
    assert "| SplitMask | 0.75 ± 0.71 (2) | 0.50 ± 0.00 (2) | - | 0.70 ± 0.14 (2) | - | - | - | - |" in text
    assert study_report.finished_rows(output, ("beit",)) == ("random", "beit", "full")
    for data in ("nuclei", "camvid"):  # what a file browser leaves is no image
        (study.root / data / HEADS[data].pictures / ".DS_Store").write_bytes(b"x")
    study_report.choose_pictures(study)
    (output / "pictures/nuclei/.DS_Store").write_bytes(b"x")
    assert sorted(path.name for path in (output / "pictures/camvid").iterdir()) == [f"{i}.png" for i in range(4)]
    # Spread over the eight: the first, third, fifth and seventh.
    with Image.open(output / "pictures" / "camvid" / "3.png") as picture:
        assert picture.getpixel((0, 0))[0] == 180
    for row in rows:
        for name, head in HEADS.items():
            drawn = run_folder(output, row, name, 0) / head.tool / "predictions"
            drawn.mkdir()
            for i in range(4):
                Image.new("RGB", (24, 16)).save(drawn / f"{i}.png")
    assert all(job.done for job in picture_jobs(study))
    bars, points = note(monkeypatch, "barh"), note(monkeypatch, "plot")
    study_report.save_points(values, rows, output / "pictures" / "points.png")
    numbers = [[*of[row].values()] for of in values.values() for row in rows if of[row]]
    assert [args[0] for args, _ in points] == numbers and len(numbers) == 4
    assert [args[1] for args, _ in bars] == [pytest.approx(sum(of) / len(of)) for of in numbers]
    study_report.save_grids(study)
    for name in ("points", "detections", "segmentations"):
        with Image.open(output / "pictures" / f"{name}.png") as picture:
            assert picture.width > 200
    (run_folder(output, "full", "camvid", 0) / "train_seg" / "results.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        study_report.read_values(output, rows)


def test_statistics() -> None:
    assert mean_and_spread([2.0, 4.0, 9.0]) == (5.0, pytest.approx(13**0.5))  # (9 + 1 + 16) / 2
    assert mean_and_spread([2.0]) == (2.0, None)
    assert [shown([]), shown([1.25]), shown([1.0, 2.0])] == ["-", "1.2 (1)", "1.5 ± 0.7 (2)"]
