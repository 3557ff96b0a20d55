"""The two things that `tools/train_cls.py` does: train and evaluate a classifier, or use a trained one."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pretrain.training.distributed import make_fabric
from pretrain.training.loader import steps_per_epoch
from pretrain.training.run_folder import RunFolder, write_json
from pretrain.training.signals import StopSignals
from splitmask_backbones.checkpoints import save_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from tools import cli
from tools.classification import data
from tools.classification.augment import CentralCrop
from tools.classification.dataset import TrainingCrops
from tools.classification.evaluate import evaluate
from tools.classification.model import Classifier, build_classifier, model_name
from tools.classification.predict import predict_pictures
from tools.classification.recipes import DOMAINS, ClsRecipe
from tools.finetuning.best import BEST_MODEL, record_evaluation
from tools.finetuning.fit import finetune
from tools.finetuning.load_table import LOAD_REPORT, mark, name_new_parts, tell
from tools.finetuning.model_files import load_strictly, newest_weights, save_model, weights_digest

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RESULTS = "results.json"
REPORT = "data_report.json"
CLASSIFIER = "classifier.safetensors"
ENCODER = "encoder.safetensors"


def train(args: argparse.Namespace, base: ClsRecipe, given: dict[str, Any]) -> None:
    """Trains from the start or the newest checkpoint, evaluates, and writes results.json last."""
    weights = None if args.weights == "none" else Path(args.weights)
    digest = weights_digest(weights)
    images = data.open_data(args, args.recipe if args.recipe in DOMAINS else None)
    with StopSignals(), RunFolder.open(args.output, resume=args.resume, artefact=RESULTS) as folder:
        cli.start_log()
        recipe = _recipe_of(args.recipe, base, given, folder.previous)
        fabric = make_fabric(recipe.precision)
        _check_batch(recipe, fabric.world_size)
        torch.manual_seed(recipe.seed)
        classifier = build_classifier(recipe, len(images.classes), weights, model=given.get("model"))
        identity = identity_of(images, folder, args, fabric)
        data.without_unreadable(images, identity["unreadable"])
        config = {
            "command": "train_cls",
            "recipe": args.recipe,
            "--weights": digest,
            "values": dataclasses.asdict(recipe) | {"model": model_name(classifier.encoder) or "custom"},
            "encoder": classifier.encoder.config,
            "data": identity,
            "free": {
                "data": str(args.data),
                "weights": args.weights,
                "workers": args.workers,
                "save_every": args.save_every,
                "log_every": args.log_every,
                "max_bad_fraction": args.max_bad_fraction,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "processes": fabric.world_size,
            },
        }
        per_epoch = steps_per_epoch(len(images.splits["train"]), recipe.batch_size)
        folder.write_config(config)
        if folder.finished:
            cli.say(folder, f"{folder.path / RESULTS} is finished: nothing to do")
        else:
            load_report = classifier.encoder.load_report
            if folder.is_main:
                data.warn(images)
                write_json(folder.path / REPORT, data.report(images))
                if load_report is not None:
                    name_new_parts(load_report, classifier, classifier.encoder)
                    tell(load_report, folder.path / LOAD_REPORT)
            public = {key: value for key, value in config.items() if key != "free"}

            def measure(step: int) -> dict[str, Any]:
                results = _measure(fabric, classifier, images, recipe, folder, args)
                if folder.is_main and recipe.eval_every:
                    best = record_evaluation(
                        folder.path,
                        step,
                        results,
                        keep=lambda _: save_model(folder.path / BEST_MODEL, classifier, public),
                        score=lambda entry: entry["top1"],
                    )
                    cli.say(folder, f"step {step}: the best so far" if best else f"step {step}: not the best")
                return results

            total_steps = _fit(fabric, classifier, images.splits["train"], per_epoch, recipe, folder, args, measure)
            if folder.is_main:
                save_model(folder.path / CLASSIFIER, classifier, public)
                save_encoder(classifier.encoder, folder.path / ENCODER)
            results = measure(total_steps)
            if folder.is_main:
                write_json(folder.path / RESULTS, mark(results, load_report))
        if args.predict is not None:
            if folder.finished:  # then this process may have trained nothing
                _load(classifier, newest_weights(folder.path, CLASSIFIER)[1], CLASSIFIER, folder)
                fabric.to_device(classifier)
            predict_pictures(fabric, classifier, _crop(recipe), images.classes, args.predict, folder, args.workers)


def use(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Evaluates (`--eval-only`) and predicts (`--predict`) with the newest weights of a run."""
    with StopSignals(), RunFolder.open(args.output, resume=True, artefact=RESULTS) as folder:
        cli.start_log()
        config = folder.previous
        if config is None or config.get("command") != "train_cls":
            raise UserError(f"--output {folder.path} holds no run of tools/train_cls.py: choose its folder")
        recipe = _recorded(config).override(given)
        labels, classes = config["data"]["labels"], config["data"]["classes"]
        classifier = build_classifier(recipe, len(classes), encoder_config=config["encoder"])
        source, tensors = newest_weights(folder.path, CLASSIFIER)
        _load(classifier, tensors, source, folder)
        fabric = make_fabric(recipe.precision)
        fabric.to_device(classifier)
        cli.say(folder, f"using {source} of {folder.path}")
        if args.eval_only:
            domain = config["recipe"] if config["recipe"] in DOMAINS else None
            images = data.open_data(args, domain, needed=("val",), classes=list(zip(labels, classes, strict=True)))
            unreadable = _unreadable(images, folder, args, fabric)
            data.without_unreadable(images, unreadable)
            # results.json marks a finished run: an unfinished one gets a file of its own, and can still be resumed.
            results_name = RESULTS if source == CLASSIFIER else f"results_{source.split()[-1]}.json"
            results = _measure(fabric, classifier, images, recipe, folder, args)
            if folder.is_main:
                write_json(folder.path / results_name, results)
        if args.predict is not None:
            predict_pictures(fabric, classifier, _crop(recipe), classes, args.predict, folder, args.workers)


def _recipe_of(name: str, base: ClsRecipe, given: dict[str, Any], previous: dict[str, Any] | None) -> ClsRecipe:
    """Returns the recipe with the values given; on a resume, values left away stay those of the run."""
    if previous is None:
        return base.override(given)
    if previous.get("command") != "train_cls" or previous.get("recipe") != name:
        raise UserError(
            f"--resume: the run in --output was made by {previous.get('command')} with --recipe "
            f"{previous.get('recipe')} and not {name}: name the old recipe, or choose another --output"
        )
    return _recorded(previous).override(given)


def _recorded(config: dict[str, Any]) -> ClsRecipe:
    values = config["values"]
    return ClsRecipe(**{name: value for name, value in values.items() if name != "model" or value in ENCODERS})


def _check_batch(recipe: ClsRecipe, world_size: int) -> None:
    local = recipe.batch_size // (world_size * recipe.accumulate)
    if recipe.mixes and local % 2 and recipe.batch_size % (world_size * recipe.accumulate) == 0:
        raise UserError(
            f"mixup and cutmix pair the images of a process, and --batch-size {recipe.batch_size} gives each of the "
            f"{world_size} processes {local}: use a --batch-size with an even share, or --mixup 0 --cutmix 0"
        )


def identity_of(
    images: data.LabelledData, folder: RunFolder, args: argparse.Namespace, fabric: Fabric
) -> dict[str, Any]:
    """Returns what identifies the data, unreadable images included; a resume trusts an unchanged list of files."""
    identity: dict[str, Any] = {name: split.fingerprint() for name, split in images.splits.items()}
    identity |= {"labels": images.labels, "classes": images.classes}
    before = (folder.previous or {}).get("data", {})
    if before:  # other data is told apart by write_config, before an image is read
        return identity | {"unreadable": before["unreadable"]}
    return identity | {"unreadable": _unreadable(images, folder, args, fabric)}


def _unreadable(images: data.LabelledData, folder: RunFolder, args: argparse.Namespace, fabric: Fabric) -> list[str]:
    counts = ", ".join(f"{len(split)} {name}" for name, split in images.splits.items())
    cli.say(folder, f"{len(images.classes)} classes ({images.layout}): checking {counts} images")
    found: list[str] = []
    if folder.is_main:
        report_path = folder.path / "bad_images.txt"
        found = data.find_unreadable(images, args.max_bad_fraction, report_path, args.workers)
    return fabric.broadcast(found)


def _fit(
    fabric: Fabric,
    classifier: Classifier,
    images: data.LabelledImages,
    per_epoch: int,
    recipe: ClsRecipe,
    folder: RunFolder,
    args: argparse.Namespace,
    measure: Callable[[int], Any],
) -> int:
    """Trains the classifier; returns the updates of the whole run."""
    total_steps = recipe.total_steps(per_epoch)
    cli.say(
        folder,
        f"{len(images)} images, {total_steps} updates of {recipe.batch_size} ({total_steps / per_epoch:.1f} epochs), "
        f"peak lr {recipe.lr:.3g}, {model_name(classifier.encoder) or 'encoder of the file'}, {fabric.device}",
    )
    train_set = TrainingCrops(images, recipe)
    finetune(
        fabric,
        classifier,
        train_set,
        len(train_set),
        recipe,
        folder,
        args,
        title="classifier",
        total_steps=total_steps,
        steps_per_epoch=per_epoch,
        evaluate=measure,
        repeats=recipe.repeats,
    )
    return total_steps


def _crop(recipe: ClsRecipe) -> CentralCrop:
    return CentralCrop(recipe.img_size, recipe.test_crop)


def _measure(
    fabric: Fabric,
    classifier: Classifier,
    images: data.LabelledData,
    recipe: ClsRecipe,
    folder: RunFolder,
    args: argparse.Namespace,
) -> dict[str, Any]:
    start = time.monotonic()
    results = evaluate(fabric, classifier, images.splits["val"], images.classes, _crop(recipe), args.workers)
    shown = f"top-1 {results['top1']:.2f}  top-5 {results['top5']:.2f}  loss {results['loss']:.4f}"
    cli.say(folder, f"{shown}  ({results['num_images']} images in {time.monotonic() - start:.1f} s)")
    return results


def _load(classifier: Classifier, tensors: dict[str, torch.Tensor], source: str, folder: RunFolder) -> None:
    load_strictly(classifier, tensors, source, folder.path, "leave away options that change the model")
