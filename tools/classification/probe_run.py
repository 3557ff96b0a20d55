"""What `tools/probe.py` does: features of every layer once, then kNN and linear probes on them."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.deep_images import range_of_run
from pretrain.monitoring.knn import knn_votes
from pretrain.training.distributed import machine_record, make_fabric
from pretrain.training.loader import steps_per_epoch
from pretrain.training.loop import fit
from pretrain.training.loop_config import Loop
from pretrain.training.measuring import STEPS
from pretrain.training.optimizer import adamw
from pretrain.training.options import RunOptions
from pretrain.training.rehearsal import Rehearsal
from pretrain.training.run_folder import RunFolder, write_json
from pretrain.training.schedule import warmup_cosine
from pretrain.training.signals import StopSignals
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.registry import encoder_name
from splitmask_backbones.run_files import BAD_IMAGES, DATA_REPORT, LOAD_REPORT, REHEARSAL_RECORD, RESULTS
from splitmask_backbones.vit import VisionTransformer
from tools import cli
from tools.classification import data
from tools.classification.evaluate import Counts
from tools.classification.linear_probe import LinearProbes, feature_batches, statistics
from tools.classification.probe_recipe import ProbeRecipe
from tools.common.load_table import mark, tell
from tools.common.plots import Curves, save_curves
from tools.finetuning.model_files import weights_digest
from tools.frozen.center_crop import CenterCrop
from tools.frozen.features import extract, means_of_maps

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
    rehearsal = Rehearsal() if options.rehearse else None
    artefact, anew = (REHEARSAL_RECORD, True) if rehearsal else (RESULTS, False)
    with StopSignals(), RunFolder.open(options.output, resume=options.resume, artefact=artefact, anew=anew) as folder:
        if folder.previous is not None and folder.previous.get("command") == "probe":
            recipe = ProbeRecipe(**folder.previous["values"]).override(given)
        encoder = _encoder(recipe, options.weights, given.get("model"))
        recipe = dataclasses.replace(recipe, img_size=recipe.img_size or encoder.img_size[0])
        options = dataclasses.replace(options, deterministic=options.is_deterministic(folder.previous))
        fabric = make_fabric(recipe.precision, options.device, deterministic=options.deterministic)
        before = (folder.previous or {}).get("data")
        if rehearsal:
            for name, split in images.splits.items():
                images.splits[name] = split.of(rehearsal.a_few(split.images.names, name, 0))
        kept = range_of_run(images.splits["train"].images, fabric, before)
        data.set_range(images, kept)
        identity: dict[str, Any] = {} if kept is None else {"value_range": list(kept)}
        identity |= data.identity_of(
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
                **({"rehearsal": True} if rehearsal else {}),
                "free": {
                    "data": str(options.places.data),
                    "weights": "none" if options.weights is None else str(options.weights),
                    "workers": options.workers,
                    **machine_record(fabric),
                    "deterministic": options.deterministic,
                },
            }
        )
        if folder.finished:
            cli.say(folder, f"{folder.path / RESULTS} is finished: nothing to do")
            return
        data.warn(images)
        write_json(folder.path / DATA_REPORT, data.report(images))
        if encoder.load_report is not None:
            tell(encoder.load_report, folder.path / LOAD_REPORT)
        measurement = _Measurement(fabric, encoder, images, recipe, folder, options.workers, rehearsal)
        results = measurement.results()
        if rehearsal:
            rehearsal.end_training(folder.path)
            shutil.rmtree(folder.path / FEATURES, ignore_errors=True)  # NFS keeps a file that is mapped into memory
            # The features are its one evaluation, of both splits.
            rehearsal.write(folder, rehearsal.record("probe", measurement.loop, fabric, recipe.precision, 1))
            return
        _plot(results["layers"], folder.path / CURVE)
        write_json(folder.path / RESULTS, mark(results, encoder.load_report))
        if not options.keep_features:
            shutil.rmtree(folder.path / FEATURES, ignore_errors=True)  # NFS keeps a file that is mapped into memory


def _encoder(recipe: ProbeRecipe, weights: Path | None, model: str | None) -> VisionTransformer:
    torch.manual_seed(recipe.seed)
    takes_token = recipe.pool == "class"
    overrides: dict[str, Any] = {"norm_maps": takes_token}
    if recipe.img_size:
        overrides["img_size"] = recipe.img_size
    encoder = resolve_encoder(recipe.model if weights is None else model, weights, **overrides)
    if takes_token and encoder.cls_token is None:
        raise UserError("--pool class: the encoder has no class token: use --pool mean")
    encoder.out_indices = recipe.indices(encoder.depth)
    return encoder.eval().requires_grad_(False)


def _pooled(encoder: VisionTransformer, crops: Tensor, pool: str) -> Tensor:
    """Returns one feature a layer, float32 `(B, layers, C)`."""
    if pool == "class":
        return torch.stack([tokens[:, 0].float() for tokens in encoder.forward_layers(crops)], dim=1)
    return means_of_maps(encoder.forward_maps(crops))


class _Measurement:
    """Features and labels of both splits, and what is measured on them."""

    def __init__(
        self, fabric: Fabric, encoder: VisionTransformer, images: data.LabelledData, recipe: ProbeRecipe,
        folder: RunFolder, workers: int, rehearsal: Rehearsal | None,
    ) -> None:  # fmt: skip
        self.fabric, self.recipe, self.folder, self.layers = fabric, recipe, folder, encoder.out_indices
        self.rehearsal = rehearsal
        self.loop = Loop(0, recipe.batch_size, 1)  # of the linear probes, none yet
        self.num_classes = len(images.classes)
        sizes = {name: len(split) for name, split in images.splits.items()}
        megabytes = sum(sizes.values()) * len(self.layers) * encoder.embed_dim * 4 / 1e6
        title = encoder_name(encoder.config) or "the encoder"
        cli.say(
            folder,
            f"{len(self.layers)} layers of {title} at {recipe.img_size} px, {sizes['train']} train and {sizes['val']} "
            f"val images, {fabric.device}: {megabytes:.0f} MB of features",
        )
        folder.start()  # from here on --resume has something to go on with
        fabric.to_device(encoder)
        if rehearsal:
            rehearsal.begin_training()
        crop, place = CenterCrop(recipe.img_size, recipe.test_crop), folder.path / FEATURES
        shape = len(self.layers), encoder.embed_dim
        self.features = {
            name: extract(
                fabric,
                lambda crops: _pooled(encoder, crops, recipe.pool),
                shape,
                split.images,
                crop,
                place / f"{name}.npy",
                workers,
                f"features, {name}",
            )
            for name, split in images.splits.items()
        }
        if rehearsal:
            rehearsal.evaluated(tuple(self.features))
        self.labels = {name: torch.tensor(split.labels) for name, split in images.splits.items()}

    def results(self) -> dict[str, Any]:
        """Returns the contents of results.json: accuracies in percent."""
        entries: list[dict[str, Any]] = [{"layer": layer, "knn": None, "linear": None} for layer in self.layers]
        if self.recipe.knn:
            for position, entry in enumerate(entries):
                entry["knn"] = self.knn(position)
                cli.say(self.folder, f"layer {entry['layer']}: kNN {entry['knn']:.2f}")
        if self.recipe.linear:
            for entry, accuracy in zip(entries, self.linear(), strict=True):
                entry["linear"] = 100 * accuracy
                cli.say(self.folder, f"layer {entry['layer']}: linear {entry['linear']:.2f}")
        measured = [name for name in ("knn", "linear") if entries[0][name] is not None]
        return {
            "layers": entries,
            "best_layer": {name: max(entries, key=lambda entry: entry[name])["layer"] for name in measured},
            "num_train": len(self.labels["train"]),
            "num_images": len(self.labels["val"]),
            "num_classes": self.num_classes,
        }

    def knn(self, position: int) -> float:
        """Returns the top-1 accuracy of the nearest neighbours by one layer's features."""
        features = (torch.from_numpy(np.array(self.features[name][:, position])) for name in data.SPLITS)
        known, queries, own = map(self.fabric.to_device, (*features, self.labels["train"]))
        votes = knn_votes(known, own, queries, self.num_classes, self.recipe.knn, self.recipe.temperature)
        counts = Counts(self.num_classes)
        counts.add(votes.cpu(), self.labels["val"])
        return counts.results([str(label) for label in range(self.num_classes)])["top1"]

    def linear(self) -> list[float]:
        """Returns the accuracy, 0-1, of a linear probe on each layer; all are trained at once."""
        recipe, features, labels = self.recipe, self.features["train"], self.labels["train"]
        probes = LinearProbes(*statistics(features), self.num_classes)
        batch_size = min(recipe.batch_size, len(features))
        rehearsal = self.rehearsal
        num_train = rehearsal.num_images["train"] if rehearsal else len(features)
        per_epoch = steps_per_epoch(num_train, batch_size)
        total_steps = recipe.linear_steps(per_epoch)
        often = max(1, total_steps // 10)
        self.loop = Loop(
            total_steps, batch_size, per_epoch, save_every=often, log_every=often, seed=recipe.seed,
            stop_after=STEPS if rehearsal else None,
        )  # fmt: skip
        deterministic = torch.are_deterministic_algorithms_enabled()
        fit(
            make_fabric("32", self.fabric.device.type, deterministic=deterministic),  # features are float32 in any case
            probes,
            adamw(param_groups(probes, recipe.lr, recipe.weight_decay), self.fabric.device),
            loop=self.loop,
            lr_at=lambda step: warmup_cosine(step, total_steps, 0),
            batches=lambda start: feature_batches(features, labels, batch_size, recipe.seed, start, total_steps),
            folder=self.folder,
            metric_names=probes.metric_names,
            title="linear probes",
            after_step=[rehearsal.after_step] if rehearsal else (),
        )
        return probes.accuracy(self.features["val"], self.labels["val"]).tolist()


def _plot(entries: list[dict[str, Any]], path: Path) -> None:
    names = {"knn": "kNN", "linear": "linear probe"}
    curves: Curves = {
        title: ([entry["layer"] for entry in entries], [entry[name] for entry in entries])
        for name, title in names.items()
        if entries[0][name] is not None
    }
    save_curves({"top-1 accuracy (%)": curves}, path, x_label="layer")
