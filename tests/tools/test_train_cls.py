"""tools/train_cls.py from option to results.json, on pictures of three colours."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.paths import ROOT
from tests.helpers.runs import kill_when, strict_json

pytest.importorskip("timm", reason="the extra 'classification' is not installed")

from pretrain.data.sources import open_source
from pretrain.training.distributed import make_fabric
from pretrain.training.global_generators import global_generators
from splitmask_backbones import create_encoder, load_encoder, save_encoder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.registry import encoder_name
from tests.helpers.cls_data import write_root
from tools.classification.data import LabelledImages
from tools.classification.evaluate import Counts, evaluate
from tools.classification.model import HEAD_STD, Classifier, build_classifier
from tools.classification.recipes import get_recipe
from tools.frozen.center_crop import CenterCrop
from tools.train_cls import main

STEPS = 6


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/train_cls.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def error_of(*words: str) -> str:
    with pytest.raises(ValueError) as caught:
        main(list(words))
    return str(caught.value)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words_of(base: Path, output: Path) -> list[str]:
    """A run that uses everything random: mixing, RandAugment, repeats, stochastic depth."""
    return [
        *("--recipe", "tiny", "--data", str(base / "root"), "--weights", str(base / "encoder.safetensors")),
        *("--output", str(output), "--steps", str(STEPS), "--workers", "0", "--log-every", "1", "--batch-size", "4"),
        *("--mixup", "0.8", "--cutmix", "1", "--repeats", "3", "--randaugment", "9", "--drop-path", "0.2"),
        *("--eval-every", "4", "--lr", "1e-3"),
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder file with a class token, and one whole run in `done`."""
    folder = tmp_path_factory.mktemp("cls")
    write_root(folder / "root")
    torch.manual_seed(0)
    encoder = create_encoder("vit_tiny", img_size=48, use_class_token=True, depth=12)
    save_encoder(encoder, folder / "encoder.safetensors")
    assert main(words_of(folder, folder / "done")) == 0
    return folder


def test_a_run_writes_what_the_others_write(base: Path) -> None:
    done = base / "done"
    results = strict_json(done / "results.json")
    assert list(results) == ["top1", "top5", "num_images", "per_class", "loss"]
    assert (
        results["num_images"] == 12
        and results["top5"] == 100.0
        and list(results["per_class"]) == ["blue", "green", "red"]
    )
    assert results["top1"] == pytest.approx(sum(results["per_class"].values()) / 3)
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and lines[0]["epoch"] == pytest.approx(1 / 6)
    assert lines[0]["loss"] == pytest.approx(math.log(3), rel=1e-3)  # the head starts with uniform predictions
    evaluations = [json.loads(line) for line in (done / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in evaluations] == [4, STEPS] and evaluations[-1]["top1"] == results["top1"]
    assert json.loads((done / "best.json").read_text()) in evaluations
    states = {e["key"]: e["state"] for e in json.loads((done / "load_report.json").read_text())["keys"]}
    assert (states["pos_embed"], states["norm.weight"], states["cls_token"]) == ("resized", "dropped", "loaded")
    config = json.loads((done / "config.json").read_text())
    assert (config["values"]["model"], config["values"]["img_size"], config["values"]["steps"]) == ("vit_tiny", 32, 6)
    assert json.loads((done / "data_report.json").read_text())["train"]["images_per_class"]["red"] == 8
    trained = load_encoder(done / "encoder.safetensors")
    assert trained.config["final_norm"] is False and trained.img_size == (32, 32)


def test_kills_and_workers_do_not_change_a_byte(base: Path, tmp_path: Path) -> None:
    words = [*words_of(base, tmp_path / "killed"), "--save-every", "2"]
    words[words.index("--workers") + 1] = "2"
    process = start(*words)
    kill_when(process, tmp_path / "killed" / "checkpoints", "step_*")
    assert not (tmp_path / "killed" / "results.json").exists()
    assert main([*words, "--resume"]) == 0
    names = ("classifier.safetensors", "encoder.safetensors", "results.json", "evaluations.jsonl", "best.json")
    for name in (*names, "best.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (base / "done" / name).read_bytes(), name


def test_two_processes_train_and_evaluate_what_one_does(base: Path, tmp_path: Path) -> None:
    """Without what each draws for itself the losses are those of one process, and all images are counted."""
    calm = ["--mixup", "0", "--cutmix", "0", "--repeats", "1", "--randaugment", "0", "--drop-path", "0"]
    assert main([*words_of(base, tmp_path / "one"), *calm, "--label-smoothing", "0"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29561"]
    words = [*words_of(base, tmp_path / "two"), *calm, "--label-smoothing", "0"]
    done = subprocess.run(
        [*launch, "tools/train_cls.py", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (strict_json(tmp_path / name / "results.json") for name in ("one", "two"))
    assert two["num_images"] == one["num_images"] == 12 and two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert two["per_class"] == one["per_class"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in found] for found in lines]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(losses[0]) == STEPS


def test_resume_of_a_finished_run_changes_nothing_and_other_values_are_named(base: Path) -> None:
    before = snapshot(base / "done")
    words = words_of(base, base / "done")
    assert main([*words, "--resume"]) == 0
    assert "--mixup was 0.8 and is now 0.2" in error_of(*words, "--resume", "--mixup", "0.2")
    assert "none" in error_of(*words, "--resume", "--weights", "none")
    assert "has --recipe tiny and not small" in error_of(*words, "--resume", "--recipe", "small")
    assert "holds another run" in error_of(*words)
    assert snapshot(base / "done") == before


def test_the_encoder_of_an_average_is_the_average(base: Path, tmp_path: Path) -> None:
    assert main([*words_of(base, tmp_path / "run"), "--ema", "0.5"]) == 0
    encoder, classifier, trained = (
        load_file(tmp_path / "run" / name)
        for name in ("encoder.safetensors", "classifier.safetensors", f"checkpoints/step_{STEPS:08d}.safetensors")
    )
    assert all(torch.equal(value, classifier[f"encoder.{name}"]) for name, value in encoder.items())
    assert not torch.equal(encoder["pos_embed"], trained["model.encoder.pos_embed"])


def test_evaluation_alone_gives_the_same_numbers(base: Path, tmp_path: Path) -> None:
    before = snapshot(base / "done")
    (base / "done" / "results.json").unlink()
    words = ["--data", str(base / "root"), "--output", str(base / "done"), "--workers", "0", "--eval-only"]
    assert main(words) == 0
    assert snapshot(base / "done") == before
    shutil.copytree(base / "root", tmp_path / "root")
    (tmp_path / "root/val/red").rename(tmp_path / "root/val/orange")
    assert "class 'orange' of the val images" in error_of(*words, "--data", str(tmp_path / "root"))


def test_evaluation_of_other_images_leaves_the_runs_results(base: Path, tmp_path: Path) -> None:
    before = snapshot(base / "done")
    shutil.copytree(base / "root", tmp_path / "root")
    next((tmp_path / "root/val/red").iterdir()).unlink()
    words = ["--data", str(tmp_path / "root"), "--output", str(base / "done"), "--workers", "0", "--eval-only"]
    assert main(words) == 0
    other = base / "done" / "results_other.json"
    assert (
        json.loads(other.read_text())["num_images"]
        == json.loads((base / "done/results.json").read_text())["num_images"] - 1
    )
    other.unlink()
    assert snapshot(base / "done") == before


def test_predictions_are_written_for_a_picture_and_a_folder(base: Path, tmp_path: Path) -> None:
    words = ["--output", str(base / "done"), "--workers", "0", "--predict"]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.new("RGB", (31, 57), "red").save(tmp_path / "in" / "sub" / "one.JPG", format="JPEG")
    Image.new("L", (90, 40), 3).save(tmp_path / "in" / "two.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")
    assert main([*words, str(tmp_path / "in")]) == 0
    drawn = base / "done" / "predictions"
    listed = json.loads((drawn / "predictions.json").read_text())
    assert set(listed) == {"sub/one.JPG", "two.png"}
    scores = [entry["score"] for entry in listed["two.png"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert Image.open(drawn / "sub" / "one.png").width == Image.open(drawn / "two.png").width == 360
    assert "bad.png cannot be read" in error_of(*words, str(tmp_path / "in" / "bad.png"))
    shutil.rmtree(drawn)


def test_three_colours_are_learned_from_random_initialisation(base: Path, tmp_path: Path) -> None:
    words = ["--recipe", "tiny", "--data", str(base / "root"), "--weights", "none", "--steps", "40", "--workers", "0"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["top1"] == 100.0 and results["per_class"] == {"blue": 100.0, "green": 100.0, "red": 100.0}


def normalized_by_hand(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def tiny_classifier(**values: Any) -> Classifier:
    recipe = get_recipe("tiny").override({"drop_path": 0.0, **values})
    torch.manual_seed(0)
    return build_classifier(recipe, 5)


def test_patches_are_pooled_without_prefix_tokens(base: Path) -> None:
    classifier = build_classifier(get_recipe("tiny"), 5, base / "encoder.safetensors").eval()
    torch.nn.init.normal_(classifier.head.weight)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = normalized_by_hand(images)
    maps = classifier.encoder.forward_maps(pixels)[0]
    pooled = F.layer_norm(maps.mean(dim=(2, 3)), (192,), eps=1e-6)
    torch.testing.assert_close(classifier.predict(images), pooled @ classifier.head.weight.T, rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient_and_the_head_starts_small(base: Path) -> None:
    classifier = build_classifier(get_recipe("tiny"), 5, base / "encoder.safetensors")
    assert float(classifier.head.weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.2)
    batch = {"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), "label": torch.tensor([0, 1, 2, 4])}
    classifier(batch)["loss"].backward()
    assert [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("values", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_mixed_loss_is_timms(values: dict[str, float]) -> None:
    """The same pixels, targets and loss as timm's training script, with the generator that the step's seed gives."""
    from timm.data.mixup import Mixup

    classifier = tiny_classifier(**values)
    torch.nn.init.normal_(classifier.head.weight)
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 4, 0])
    pixels = normalized_by_hand(images)
    alphas = {"mixup_alpha": values.get("mixup", 0.0), "cutmix_alpha": values.get("cutmix", 0.0)}
    for seed in range(3):
        torch.manual_seed(seed)
        loss = classifier({"image": images, "label": labels})["loss"]
        torch.manual_seed(seed)
        with global_generators(int(torch.randint(2**31, ()))):
            mixed, targets = Mixup(**alphas, label_smoothing=0.1, num_classes=5)(pixels.clone(), labels)
        assert not torch.equal(mixed, pixels)
        expected = -(targets * classifier.logits(mixed).log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(loss, expected)
        torch.manual_seed(seed)
        assert classifier({"image": images, "label": labels})["loss"] == loss


def test_without_mixing_the_loss_is_cross_entropy_with_smoothed_labels() -> None:
    classifier = tiny_classifier(mixup=0.0, cutmix=0.0, label_smoothing=0.2)
    torch.nn.init.normal_(classifier.head.weight)
    images, labels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 4])
    values = classifier({"image": images, "label": labels})
    logits = classifier.predict(images)
    torch.testing.assert_close(values["loss"], F.cross_entropy(logits, labels, label_smoothing=0.2))
    assert values["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean())


def test_learning_rates_decay_layer_by_layer() -> None:
    classifier = tiny_classifier()
    groups = param_groups(classifier, 1.0, 0.05, 0.65)
    found = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert set(found) == {name for name, _ in classifier.named_parameters()}
    assert found["encoder.pos_embed"] == (pytest.approx(0.65**13), 0.0)
    assert found["encoder.patch_embed.proj.weight"] == (pytest.approx(0.65**13), 0.05)
    assert found["encoder.blocks.0.attn.qkv.weight"] == (pytest.approx(0.65**12), 0.05)
    assert found["encoder.blocks.11.mlp.fc1.bias"] == (pytest.approx(0.65), 0.0)
    assert found["fc_norm.weight"] == (1.0, 0.0) and found["head.weight"] == (1.0, 0.05)


def test_counts_against_hand_counted_ones() -> None:
    counts = Counts(7)
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).repeat(4, 1)
    counts.add(scores[:3], torch.tensor([0, 4, 5]), torch.tensor([1.0, 2.0, 3.0]))
    counts.add(scores[3:], torch.tensor([0]), torch.tensor([2.0]))
    results = counts.results(list("abcdefg"))
    assert (results["top1"], results["top5"], results["num_images"], results["loss"]) == (50.0, 75.0, 4, 2.0)
    assert results["per_class"] == {"a": 100.0, "b": None, "c": None, "d": None, "e": 0.0, "f": 0.0, "g": None}


def test_evaluation_is_in_float32_whatever_the_training_computes_in(base: Path) -> None:
    images = open_source(base / "root/val")
    split = LabelledImages(images, [i % 3 for i in range(len(images))])
    classifier, names = tiny_classifier().eval(), list("abcde")
    torch.nn.init.normal_(classifier.head.weight)
    of_each = [
        evaluate(make_fabric(kind), classifier, split, names, CenterCrop(32, 0.875), 0) for kind in ("32", "bf16")
    ]
    assert of_each[0] == of_each[1]


def test_an_encoder_of_no_known_size_has_no_name(tmp_path: Path) -> None:
    save_encoder(create_encoder("vit_tiny", depth=2), tmp_path / "odd.safetensors")
    classifier = build_classifier(get_recipe("tiny"), 2, tmp_path / "odd.safetensors")
    assert encoder_name(classifier.encoder.config) is None
    assert encoder_name(create_encoder("vit_small").config) == "vit_small"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "tinny"], "did you mean 'tiny'"),
        (["--wieghts", "none"], "did you mean '--weights'"),
        (["--layout", "foldr"], "did you mean 'folder'"),
        (["--weights", "none", "--data", "ROOT"], "--recipe NAME is needed"),
        (["--recipe", "tiny", "--data", "ROOT"], "--weights FILE|none is needed"),
        (["--recipe", "tiny", "--weights", "none"], "--data ROOT is needed"),
        (["--recipe", "tiny", "--weights", "none", "--data", "ROOT", "--lr", "0"], "--lr 0.0 must be above 0"),
        (["--recipe", "tiny", "--weights", "GONE.safetensors", "--data", "ROOT"], "GONE.safetensors does not exist"),
        (["--recipe", "tiny", "--weights", "none", "--data", "NOWHERE"], "NOWHERE does not exist"),
        (["--recipe", "tiny", "--weights", "none", "--data", "ROOT", "--batch-size", "30"], "data set of 24 images"),
        (["--recipe", "tiny", "--weights", "ENCODER", "--data", "ROOT", "--model", "vit_base"], "embed_dim"),
        (["--recipe", "tiny", "--weights", "none", "--data", "ROOT", "--resume"], "nothing to resume"),
        (
            ["--recipe", "tiny", "--weights", "CLASSIFIER", "--data", "ROOT"],
            "a whole model of train_cls: name an encoder",
        ),
        (["--eval-only", "--data", "ROOT"], "holds no run"),
        (["--recipe", "tiny", "--weights", "none", "--data", "ROOT", "--predict", "NO.png"], "NO.png does not exist"),
    ],
)
def test_errors_leave_nothing_behind(base: Path, tmp_path: Path, words: list[str], message: str) -> None:
    names = {"ROOT": str(base / "root"), "ENCODER": str(base / "encoder.safetensors")}
    names["CLASSIFIER"] = str(base / "done" / "classifier.safetensors")
    assert message in error_of(*[names.get(w, w) for w in words], "--output", str(tmp_path / "out"), "--workers", "0")
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(base / "root", root)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    process = start("--recipe", "tiny", "--data", str(root), "--weights", "none", "--output", str(tmp_path / "out"))
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert process.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: 24 of 36 images"), err
    assert not (tmp_path / "out" / "config.json").exists()
