"""What `tools/probe.py` does: features of every layer once, then kNN and linear probes on them."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pretrain.monitoring.knn import knn_votes
from pretrain.training.distributed import make_fabric
from pretrain.training.loader import steps_per_epoch
from pretrain.training.loop import Loop, fit
from pretrain.training.options import RunOptions
from pretrain.training.run_folder import RunFolder, write_json
from pretrain.training.schedule import warmup_cosine
from pretrain.training.signals import StopSignals
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.registry import encoder_name
from splitmask_backbones.vit import VisionTransformer
from tools import cli
from tools.classification import data
from tools.classification.augment import CentralCrop
from tools.classification.evaluate import Counts
from tools.classification.features import extract
from tools.classification.linear_probe import LinearProbes, feature_batches, statistics
from tools.classification.probe_recipe import ProbeRecipe
from tools.finetuning.load_table import LOAD_REPORT, mark, tell
from tools.finetuning.model_files import weights_digest
from tools.finetuning.plots import Curves, save_curves
from tools.finetuning.run import REPORT, RESULTS
from tools.finetuning.task import BAD_IMAGES

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FEATURES = "features"
CURVE = "layers.png"


@dataclass(frozen=True)
class ProbeOptions(RunOptions):
    """What the probe is to do.

    Attributes:
        weights: encoder file; None for random initialisation.
        places: what the command line says about the data.
        keep_features: whether DIR/features stays at the end.
    """

    weights: Path | None
    places: data.DataOptions
    keep_features: bool


def probe(options: ProbeOptions, recipe: ProbeRecipe, given: dict[str, Any]) -> None:
    """Measures the layers of an encoder, and writes results.json last."""
    cli.start_log()
    digest = weights_digest(options.weights)
    images = data.open_data(options.places)
    with StopSignals(), RunFolder.open(options.output, resume=options.resume, artefact=RESULTS) as folder:
        if folder.previous is not None and folder.previous.get("command") == "probe":
            recipe = ProbeRecipe(**folder.previous["values"]).override(given)
        encoder = _encoder(recipe, options.weights, given.get("model"))
        recipe = dataclasses.replace(recipe, img_size=recipe.img_size or encoder.img_size[0])
        fabric = make_fabric(recipe.precision)
        before = (folder.previous or {}).get("data")
        identity = data.identity_of(
            images, before, folder, fabric, options.max_bad_fraction, folder.path / BAD_IMAGES, options.workers
        )
        data.without_unreadable(images, identity["unreadable"])
        folder.write_config(
            {
                "command": "probe",
                "--weights": digest,
                "values": dataclasses.asdict(recipe),
                "encoder": encoder.config | {"name": encoder_name(encoder.config)},
                "data": identity,
                "free": {
                    "data": str(options.places.data),
                    "weights": "none" if options.weights is None else str(options.weights),
                    "workers": options.workers,
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                },
            }
        )
        if folder.finished:
            cli.say(folder, f"{folder.path / RESULTS} is finished: nothing to do")
            return
        data.warn(images)
        write_json(folder.path / REPORT, data.report(images))
        if encoder.load_report is not None:
            tell(encoder.load_report, folder.path / LOAD_REPORT)
        results = _measure(fabric, encoder, images, recipe, folder, options)
        _plot(results["layers"], folder.path / CURVE)
        write_json(folder.path / RESULTS, mark(results, encoder.load_report))
        if not options.keep_features:
            shutil.rmtree(folder.path / FEATURES)


def _encoder(recipe: ProbeRecipe, weights: Path | None, model: str | None) -> VisionTransformer:
    torch.manual_seed(recipe.seed)
    overrides: dict[str, Any] = {"final_norm": False, "norm_maps": False}
    if recipe.img_size:
        overrides["img_size"] = recipe.img_size
    encoder = resolve_encoder(recipe.model if weights is None else model, weights, **overrides)
    encoder.out_indices = recipe.indices(encoder.depth)
    return encoder.eval().requires_grad_(False)


def _measure(
    fabric: Fabric,
    encoder: VisionTransformer,
    images: data.LabelledData,
    recipe: ProbeRecipe,
    folder: RunFolder,
    options: ProbeOptions,
) -> dict[str, Any]:
    """Returns the contents of results.json: accuracies in percent."""
    sizes = {name: len(split) for name, split in images.splits.items()}
    layers = encoder.out_indices
    megabytes = sum(sizes.values()) * len(layers) * encoder.embed_dim * 4 / 1e6
    name = encoder_name(encoder.config) or "the encoder"
    cli.say(
        folder,
        f"{len(layers)} layers of {name} at {recipe.img_size} px, {sizes['train']} "
        f"train and {sizes['val']} val images, {fabric.device}: {megabytes:.0f} MB of features",
    )
    folder.start()  # from here on --resume has something to go on with
    fabric.to_device(encoder)
    crop = CentralCrop(recipe.img_size, recipe.test_crop)
    features = {
        name: extract(
            fabric, encoder, split, crop, folder.path / FEATURES / f"{name}.npy", options.workers, f"features, {name}"
        )
        for name, split in images.splits.items()
    }
    labels = {name: torch.tensor(split.labels) for name, split in images.splits.items()}
    entries: list[dict[str, Any]] = [{"layer": layer, "knn": None, "linear": None} for layer in layers]
    if recipe.knn:
        for position, entry in enumerate(entries):
            entry["knn"] = _knn(fabric, features, labels, position, len(images.classes), recipe)
            cli.say(folder, f"layer {entry['layer']}: kNN {entry['knn']:.2f}")
    if recipe.linear:
        accuracies = _linear(fabric, features, labels, len(images.classes), recipe, folder, options)
        for entry, accuracy in zip(entries, accuracies, strict=True):
            entry["linear"] = 100 * accuracy
            cli.say(folder, f"layer {entry['layer']}: linear {entry['linear']:.2f}")
    measured = [name for name in ("knn", "linear") if entries[0][name] is not None]
    return {
        "layers": entries,
        "best_layer": {name: max(entries, key=lambda entry: entry[name])["layer"] for name in measured},
        "num_train": sizes["train"],
        "num_images": sizes["val"],
        "num_classes": len(images.classes),
    }


def _knn(
    fabric: Fabric,
    features: dict[str, np.ndarray],
    labels: dict[str, torch.Tensor],
    position: int,
    num_classes: int,
    recipe: ProbeRecipe,
) -> float:
    known, queries = (fabric.to_device(torch.from_numpy(np.array(features[name][:, position]))) for name in data.SPLITS)
    own = fabric.to_device(labels["train"])
    votes = knn_votes(known, own, queries, num_classes, recipe.knn, recipe.temperature)
    counts = Counts(num_classes)
    counts.add(votes.cpu(), labels["val"])
    return counts.results([str(label) for label in range(num_classes)])["top1"]


def _linear(
    fabric: Fabric,
    features: dict[str, np.ndarray],
    labels: dict[str, torch.Tensor],
    num_classes: int,
    recipe: ProbeRecipe,
    folder: RunFolder,
    options: ProbeOptions,
) -> list[float]:
    probes = LinearProbes(*statistics(features["train"]), num_classes)
    batch_size = min(recipe.batch_size, len(features["train"]))
    per_epoch = steps_per_epoch(len(features["train"]), batch_size)
    total_steps = recipe.linear_steps(per_epoch)
    # Features are float32 whatever they were computed in.
    exact = fabric if recipe.precision == "32" else make_fabric("32")
    fit(
        exact,
        probes,
        torch.optim.AdamW(param_groups(probes, recipe.lr, recipe.weight_decay), fused=False),
        loop=Loop(
            total_steps=total_steps,
            batch_size=batch_size,
            steps_per_epoch=per_epoch,
            save_every=max(1, total_steps // 10),
            log_every=max(1, total_steps // 10),
            seed=recipe.seed,
        ),
        lr_at=lambda step: warmup_cosine(step, total_steps, 0),
        batches=lambda start: feature_batches(
            features["train"], labels["train"], batch_size, recipe.seed, start, total_steps
        ),
        folder=folder,
        metric_names=probes.metric_names,
        title="linear probes",
    )
    return probes.accuracy(features["val"], labels["val"]).tolist()


def _plot(entries: list[dict[str, Any]], path: Path) -> None:
    names = {"knn": "kNN", "linear": "linear probe"}
    curves: Curves = {
        title: ([entry["layer"] for entry in entries], [entry[name] for entry in entries])
        for name, title in names.items()
        if entries[0][name] is not None
    }
    save_curves({"top-1 accuracy (%)": curves}, path, x_label="layer")
