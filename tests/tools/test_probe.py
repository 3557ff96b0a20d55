"""tools/probe.py: kNN against a naive loop, linear probes against full-batch fits, every layer at once, resuming."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.helpers.paths import ROOT

pytest.importorskip("timm", reason="the extra 'classification' is not installed")

import shutil
from types import SimpleNamespace

import timm

from pretrain.data.decode import read_image
from pretrain.data.pixel_norm import PixelNorm
from pretrain.monitoring import knn
from pretrain.training.distributed import make_fabric
from splitmask_backbones import create_encoder, load_encoder, save_encoder
from splitmask_backbones.param_groups import param_groups
from tests.helpers.cls_data import write_root
from tools.classification import probe_run
from tools.classification.linear_probe import LinearProbes, feature_batches, statistics
from tools.classification.probe_recipe import ProbeRecipe
from tools.frozen.center_crop import CenterCrop
from tools.probe import main


def naive_knn(
    known: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, k: int, temperature: float
) -> np.ndarray:
    votes = np.zeros((len(queries), num_classes))
    for i, query in enumerate(queries):
        similarity = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in known]
        for j in sorted(range(len(known)), key=lambda j: -similarity[j])[:k]:
            votes[i, labels[j]] += math.exp((similarity[j] - max(similarity)) / temperature)
    return votes


@pytest.mark.parametrize(("k", "known_at_once"), [(1, 65_536), (20, 7), (20, 50), (500, 64)])
def test_knn_against_a_naive_loop(monkeypatch: pytest.MonkeyPatch, k: int, known_at_once: int) -> None:
    monkeypatch.setattr(knn, "KNOWN_AT_ONCE", known_at_once)
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 9)
    rng = np.random.default_rng(0)
    known, queries, labels = rng.normal(size=(120, 6)), rng.normal(size=(31, 6)), rng.integers(0, 4, 120)
    mine = knn.knn_votes(torch.tensor(known), torch.tensor(labels), torch.tensor(queries), 5, k, 0.07)
    expected = naive_knn(known, labels, queries, 5, k, 0.07)
    np.testing.assert_allclose(mine.numpy(), expected, rtol=2e-4)
    assert (mine[:, 4] == 0).all()  # a class without images gets no vote


def train(
    features: np.ndarray, labels: torch.Tensor, steps: int, batch_size: int, weight_decay: float = 0.0
) -> LinearProbes:
    probes = LinearProbes(*statistics(features), int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(param_groups(probes, 0.02, weight_decay))
    for step, batch in enumerate(feature_batches(features, labels, batch_size, 0, 0, steps)):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        probes(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return probes


def blobs(spread: float, num: int = 90) -> tuple[np.ndarray, torch.Tensor]:
    """Two layers of features of three classes: the first says nothing, the second holds a blob a class."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, num)
    centres = rng.normal(size=(3, 5)) * 3
    informative = 100 + 0.01 * (centres[labels] + spread * rng.normal(size=(num, 5)))  # far from zero, tiny scale
    return np.stack([rng.normal(size=(num, 5)), informative], axis=1).astype(np.float32), torch.tensor(labels)


def test_linear_probes_reach_the_full_batch_optimum() -> None:
    """Overlapping blobs have one best loss; L-BFGS on the whole of each layer finds the same one."""
    features, labels = blobs(spread=4.0)
    probes = train(features, labels, 600, 90)
    for layer in range(2):
        x = torch.from_numpy(features[:, layer]).double()
        x = (x - x.mean(0)) / x.std(0, correction=0)
        weight, bias = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (3,)))
        solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

        def closure(x: Any = x, weight: Any = weight, bias: Any = bias, solver: Any = solver) -> torch.Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(x @ weight + bias, labels)
            loss.backward()
            return loss

        solver.step(closure)
        best = float(closure().detach())
        logits = probes.logits(torch.from_numpy(features))[:, layer]
        assert float(F.cross_entropy(logits, labels).detach()) == pytest.approx(best, abs=2e-3)
        right = (logits.argmax(1) == labels).double().mean()
        assert float(probes.accuracy(features, labels)[layer]) == pytest.approx(float(right))


def measurement(features: Any, labels: Any, **values: Any) -> Any:
    made = object.__new__(probe_run._Measurement)
    made.recipe, made.fabric, made.num_classes = ProbeRecipe(**values), make_fabric(), 2
    made.features, made.labels, made.rehearsal, made.folder = features, labels, None, None
    return made


def test_k_and_temperature_decide_who_votes() -> None:
    """The nearest neighbour is of class 0, three of the five nearest are of class 1."""
    angles = np.array([0.1, 0.2, 0.3, 0.35, 0.4], np.float32)
    known = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]
    features = {"train": known, "val": np.array([[[1, 0]]], np.float32)}
    labels = {"train": torch.tensor([0, 0, 1, 1, 1]), "val": torch.tensor([0])}
    top1 = [measurement(features, labels, knn=k, temperature=t).knn(0) for k, t in ((1, 1.0), (5, 1.0), (5, 0.001))]
    assert top1 == [100.0, 0.0, 100.0]


def test_linear_probes_follow_their_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: dict[str, Any] = {}
    monkeypatch.setattr(
        probe_run, "fit", lambda fabric, probes, optimizer, **how: fitted.update(how, optimizer=optimizer)
    )
    features, labels = blobs(spread=1.0)
    both = {"train": features, "val": features}, {"train": labels, "val": labels}
    measurement(*both, steps=40, epochs=None, lr=0.5, weight_decay=0.3, seed=3, batch_size=8).linear()
    assert [fitted["lr_at"](step) for step in (0, 20, 40)] == pytest.approx([1.0, 0.5, 0.0], abs=0.05)
    groups = {name: group for group in fitted["optimizer"].param_groups for name in group["names"]}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "weight": (0.5, 0.3),
        "bias": (0.5, 0.0),
    }
    assert (fitted["loop"].total_steps, fitted["loop"].batch_size, fitted["loop"].seed) == (40, 8, 3)


def test_biases_are_not_decayed() -> None:
    groups = param_groups(LinearProbes(torch.zeros(2, 5), torch.ones(2, 5), 3), 1e-3, 0.1)
    assert {name: group["weight_decay"] for group in groups for name in group["names"]} == {"weight": 0.1, "bias": 0.0}


def test_separable_features_are_separated_and_noise_is_not() -> None:
    features, labels = blobs(spread=0.2)
    noise, blob = train(features, labels, 200, 30).accuracy(features, labels).tolist()
    assert blob == 1.0 and noise < 0.8


def test_layers_learn_as_they_would_alone() -> None:
    features, labels = blobs(spread=2.0)
    together = train(features, labels, 50, 16).weight
    for layer in range(2):
        alone = train(features[:, [layer]], labels, 50, 16).weight[0]
        torch.testing.assert_close(together[layer], alone, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_images_and_constants_do_no_harm() -> None:
    features = np.random.default_rng(0).normal(5, 2, (10_000, 2, 3)).astype(np.float32)
    features[:, 1, 2] = 7.0
    mean, std = statistics(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[0], features[:, 0].astype(np.float64).std(0), rtol=1e-6)
    assert std[1, 2] == 1.0


def words_of(base: Path, output: Path) -> list[str]:
    weights, root = str(base / "encoder.safetensors"), str(base / "root")
    return ["--weights", weights, "--data", root, "--output", str(output), "--workers", "0", "--steps", "60"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder file, and one whole probe in `done`."""
    folder = tmp_path_factory.mktemp("probe")
    write_root(folder / "root", 24, 6)
    torch.manual_seed(0)
    save_encoder(create_encoder("vit_tiny", img_size=32, depth=3), folder / "encoder.safetensors")
    assert main([*words_of(folder, folder / "done"), "--keep-features"]) == 0
    return folder


def test_every_layer_is_measured(base: Path) -> None:
    results = json.loads((base / "done" / "results.json").read_text())
    assert [entry["layer"] for entry in results["layers"]] == [0, 1, 2]
    assert (results["num_train"], results["num_images"], results["num_classes"]) == (72, 18, 3)
    for entry in results["layers"]:
        assert entry["knn"] == 100.0 and entry["linear"] == 100.0  # colours pass through any random encoder
    assert results["best_layer"] == {"knn": 0, "linear": 0}
    assert (base / "done" / "layers.png").stat().st_size > 5000
    assert json.loads((base / "done" / "load_report.json").read_text())["complete"]
    assert json.loads((base / "done" / "config.json").read_text())["values"]["img_size"] == 32
    lines = (base / "done" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 60


def test_features_are_the_means_of_the_maps_before_the_norm(base: Path) -> None:
    encoder = load_encoder(base / "encoder.safetensors", out_indices=(0, 1, 2)).eval()
    names = sorted(path.relative_to(base / "root").as_posix() for path in (base / "root/val").rglob("*.png"))
    features = np.load(base / "done" / "features" / "val.npy")
    assert features.shape == (18, 3, 192)
    for index in (0, 7, 17):
        crop = CenterCrop(32, 0.875)(read_image(base / "root" / names[index]))
        with torch.no_grad():
            maps = encoder.forward_maps(PixelNorm()(crop[None]), norm_maps=False)
            tokens = encoder(PixelNorm()(crop[None]))
        expected = [layer[0].flatten(1).mean(1).numpy() for layer in maps]
        np.testing.assert_allclose(features[index], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(features[index, 2] - tokens[0].mean(0).numpy()).max() > 0.01


def test_the_class_token_after_the_norm_is_probed_where_asked(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    timm_vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=0).eval()
    torch.nn.init.normal_(timm_vit.norm.weight)
    encoder = create_encoder("vit_tiny", img_size=32, depth=3, use_class_token=True)
    encoder.load_state_dict(timm_vit.state_dict())
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    words = [*words_of(base, tmp_path / "out"), "--weights", str(tmp_path / "encoder.safetensors"), "--pool", "class"]
    assert main([*words, "--linear", "false", "--keep-features"]) == 0
    names = sorted(path.relative_to(base / "root").as_posix() for path in (base / "root/val").rglob("*.png"))
    crop = CenterCrop(32, 0.875)(read_image(base / "root" / names[7]))
    with torch.no_grad():
        found = timm_vit.forward_intermediates(
            PixelNorm()(crop[None]), norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    expected = [prefix[0, 0].numpy() for _, prefix in found]
    features = np.load(tmp_path / "out/features/val.npy")
    np.testing.assert_allclose(features[7], expected, rtol=1e-3, atol=1e-4)


def test_chosen_layers_give_the_same_numbers(base: Path, tmp_path: Path) -> None:
    words = [*words_of(base, tmp_path / "some"), "--layers", "2,0", "--linear", "false", "--knn", "5"]
    assert main(words) == 0
    results = json.loads((tmp_path / "some" / "results.json").read_text())
    assert [(entry["layer"], entry["linear"]) for entry in results["layers"]] == [(0, None), (2, None)]
    assert not (tmp_path / "some" / "features").exists() and not (tmp_path / "some" / "checkpoints").exists()
    assert list(results["best_layer"]) == ["knn"]


def test_a_killed_probe_goes_on_with_its_features(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.common.shards import Prepared
    from tools.frozen import center_crop, features

    for module in (center_crop, features):
        monkeypatch.setattr(module, "TEST_BATCH", 4)
    monkeypatch.setattr(features, "BATCHES_A_SAVE", 2)
    read: list[int] = []
    original = Prepared.__getitem__

    def stop_early(self: Any, index: int) -> Any:
        read.append(index)
        if len(read) == 31:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(Prepared, "__getitem__", stop_early)
    words = [*words_of(base, tmp_path / "run"), "--keep-features"]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert main([*words, "--resume"]) == 0
    assert read[31:] == [*range(24, 72), *range(18)]  # 30 images were done, 24 of them saved
    for name in ("train.npy", "val.npy"):
        mine, whole = (np.load(folder / "features" / name) for folder in (tmp_path / "run", base / "done"))
        np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-5)
    assert main([*words, "--resume"]) == 0  # finished: nothing to do
    with pytest.raises(ValueError, match="--knn was 20 and is now 3"):
        main([*words, "--resume", "--knn", "3"])


def test_random_initialisation_and_a_stopped_training(base: Path, tmp_path: Path) -> None:
    """SIGTERM while the probes are trained; --resume ends with the numbers of a run that was never stopped."""
    words = ["--weights", "none", "--model", "vit_tiny", "--data", str(base / "root"), "--workers", "0"]
    words += ["--img-size", "16", "--layers", "0,11", "--batch-size", "8"]
    command = [sys.executable, "tools/probe.py", *words, "--output", str(tmp_path / "run"), "--steps", "2000"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step_*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert main([*words, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert main([*words, "--output", str(tmp_path / "whole"), "--steps", "2000"]) == 0
    whole, resumed = (tmp_path / name for name in ("whole", "run"))
    assert (resumed / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    mine, theirs = (load_file(folder / "checkpoints/step_00002000.safetensors") for folder in (resumed, whole))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "3"], "the encoder has blocks 0 to 2"),
        (["--layers", "a"], "must be all, or numbers"),
        (["--knn", "0", "--linear", "no"], "nothing to measure"),
        (["--pool", "class"], "the encoder has no class token"),
        (["--pool", "max"], "choose from class, mean"),
        (["--knnn", "0"], "did you mean '--knn'"),
        (["--weights", "gone.safetensors"], "gone.safetensors does not exist"),
        (["--model", "vit_base"], "vit_base"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_errors_leave_nothing_behind(base: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([*words_of(base, tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_the_images_of_val_are_asked_and_those_of_train_are_known(base: Path, tmp_path: Path) -> None:
    """Classes that swap their names between the two: all that is learned is wrong."""
    shutil.copytree(base / "root", tmp_path / "root")
    for old, new in (("red", "x"), ("green", "red"), ("blue", "green"), ("x", "blue")):
        (tmp_path / "root/val" / old).rename(tmp_path / "root/val" / new)
    words = words_of(base, tmp_path / "out")
    words[words.index("--data") + 1] = str(tmp_path / "root")
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(entry["knn"], entry["linear"]) for entry in results["layers"]] == [(0.0, 0.0)] * 3


def test_the_best_layer_has_the_largest_share() -> None:
    measurement: Any = object.__new__(probe_run._Measurement)
    measurement.layers, measurement.recipe, measurement.num_classes = (2, 5, 7), ProbeRecipe(), 3
    measurement.folder, measurement.labels = SimpleNamespace(is_main=True), {"train": [0], "val": [0]}
    measurement.knn, measurement.linear = [10.0, 30.0, 20.0].__getitem__, lambda: [0.1, 0.2, 0.3]
    assert measurement.results()["best_layer"] == {"knn": 5, "linear": 7}
