"""The two things that `tools/train_det.py` does: train and evaluate a detector, or use a trained one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from det_configs.common.recipe import DetRecipe
from pretrain.training.distributed import make_fabric
from pretrain.training.ema import WeightAverage
from pretrain.training.loader import steps_per_epoch
from pretrain.training.run_folder import RunFolder, write_json
from pretrain.training.signals import StopSignals
from splitmask_backbones.errors import UserError
from tools import cli
from tools.detection import splits as data
from tools.detection.coco import CocoSplit
from tools.detection.config import OPTIONS
from tools.detection.dataset import TrainingImages, collate
from tools.detection.detect import detect_all
from tools.detection.engines import build_detector, choose_engine
from tools.detection.evaluate import Detection, coco_ap
from tools.detection.predict import predict_pictures
from tools.detection.results import DETECTOR, best_by, paths_and_sizes, to_coco
from tools.finetuning.best import BEST_MODEL, record_evaluation
from tools.finetuning.fit import finetune
from tools.finetuning.load_table import LOAD_REPORT, mark, name_new_parts, tell
from tools.finetuning.model_files import load_strictly, newest_weights, save_model, weights_digest

if TYPE_CHECKING:
    from tools.detection.engines import Detector

RESULTS = "results.json"
REPORT = "data_report.json"


def train(args: argparse.Namespace, base: DetRecipe, given: dict[str, Any]) -> None:
    """Trains from the start or the newest checkpoint, evaluates, and writes results.json last."""
    locations = data.locate(args.data, args.val, args.train_json, args.train_images, args.val_json, args.val_images)
    weights = None if args.weights == "none" else Path(args.weights)
    digest = weights_digest(weights)
    with StopSignals(), RunFolder.open(args.output, resume=args.resume, artefact=RESULTS) as folder:
        cli.start_log()
        previous = folder.previous or {}
        recipe = _recipe_of(args.config, base, given, folder.previous)
        fabric = make_fabric(recipe.precision)
        splits = data.read_splits(locations)
        identity = _identity(splits, previous, args, folder, fabric)
        for name, split in splits.items():
            data.without(split, identity["unusable"][name])
        engine = _engine_of(previous, args.engine, recipe)
        torch.manual_seed(recipe.seed)
        detector = build_detector(engine, recipe, len(splits["train"].categories), weights)
        values = dataclasses.asdict(recipe)
        config = {
            "command": "train_det",
            "config": Path(args.config).stem,
            "--engine": engine,
            "--weights": digest,
            "values": {name: values[name] for name in OPTIONS},
            "recipe_values": {name: value for name, value in values.items() if name not in OPTIONS},
            "config_values": dataclasses.asdict(base),
            "encoder": detector.encoder.config,
            "data": identity,
            "free": {
                "weights": args.weights,
                "workers": args.workers,
                "save_every": args.save_every,
                "log_every": args.log_every,
                "max_bad_fraction": args.max_bad_fraction,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
        }
        train_set = TrainingImages(splits["train"], recipe)
        per_epoch = steps_per_epoch(len(train_set), recipe.batch_size)
        folder.write_config(config)
        if folder.finished:
            cli.say(folder, f"{folder.path / RESULTS} is finished: nothing to do")
        else:
            _report(splits, identity["unusable"], folder)
            load_report = detector.encoder.load_report
            if folder.is_main and load_report is not None:
                name_new_parts(load_report, detector, detector.encoder)
                tell(load_report, folder.path / LOAD_REPORT)
            public = {key: value for key, value in config.items() if key != "free"}

            def measure(step: int) -> dict[str, Any] | None:
                results = _measure(fabric, detector, splits["val"], recipe, folder, args)
                if results is not None and recipe.eval_every is not None:
                    best = record_evaluation(
                        folder.path,
                        step,
                        results,
                        keep=lambda _: save_model(folder.path / BEST_MODEL, detector, public),
                        score=best_by,
                    )
                    cli.say(folder, f"step {step}: the best so far" if best else f"step {step}: not the best")
                return results

            total_steps = _fit(fabric, detector, train_set, per_epoch, recipe, folder, args, measure)
            if folder.is_main:
                save_model(folder.path / DETECTOR, detector, public)
            results = measure(total_steps)
            if results is not None:
                write_json(folder.path / RESULTS, mark(results, load_report))
        if args.predict is not None:
            if folder.finished:  # then this process may have trained nothing
                _load(detector, newest_weights(folder.path, DETECTOR)[1], DETECTOR, folder)
                fabric.to_device(detector)
            predict_pictures(fabric, detector, recipe, splits["train"].categories, args.predict, folder, args.workers)


def use(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Evaluates (`--eval-only`) and draws (`--predict`) with the newest weights of a run."""
    with StopSignals(), RunFolder.open(args.output, resume=True, artefact=RESULTS) as folder:
        cli.start_log()
        config = folder.previous
        if config is None or config.get("command") != "train_det":
            raise UserError(f"--output {folder.path} holds no run of tools/train_det.py: choose its folder")
        recipe = _recorded(config).override(given)
        categories = [(id, name) for id, name in config["data"]["categories"]]
        engine = _engine_of(config, args.engine, recipe)
        detector = build_detector(engine, recipe, len(categories), encoder_config=config["encoder"])
        source, tensors = newest_weights(folder.path, DETECTOR)
        _load(detector, tensors, source, folder)
        fabric = make_fabric(recipe.precision)
        fabric.to_device(detector)
        cli.say(folder, f"using {source} of {folder.path}")
        if args.eval_only:
            locations = data.locate(args.data, args.val, None, None, args.val_json, args.val_images, needed=("val",))
            splits = data.read_splits(locations, categories)
            data.warn_about("val", splits["val"])
            bad = data.check_split_images(splits, args.max_bad_fraction, folder.path / "bad_images.txt", args.workers)
            data.without(splits["val"], bad["val"])
            _report({"val": splits["val"]}, bad, folder)
            # results.json marks a finished run: an unfinished one gets a file of its own, and can still be resumed.
            results_name = RESULTS if source == DETECTOR else f"results_{source.split()[-1]}.json"
            results = _measure(fabric, detector, splits["val"], recipe, folder, args)
            if results is not None:
                write_json(folder.path / results_name, results)
        if args.predict is not None:
            predict_pictures(fabric, detector, recipe, categories, args.predict, folder, args.workers)


def _recipe_of(config: str, base: DetRecipe, given: dict[str, Any], previous: dict[str, Any] | None) -> DetRecipe:
    """Returns the recipe with the values given; on a resume, values left away stay those of the run."""
    if previous is None:
        return base.override(given)
    if previous.get("command") != "train_det" or previous.get("config") != Path(config).stem:
        raise UserError(
            f"--resume: the run in --output was made by {previous.get('command')} with config "
            f"{previous.get('config')} and not {Path(config).stem}: name the old one, or choose another --output"
        )
    return _recorded(previous).override(given)


def _engine_of(previous: dict[str, Any], name: str, recipe: DetRecipe) -> str:
    """Returns the engine: that of the run in the folder where --engine is left away."""
    return choose_engine(previous.get("--engine", name) if name == "auto" else name, recipe)


def _recorded(config: dict[str, Any]) -> DetRecipe:
    return DetRecipe(**config["values"], **config["recipe_values"])


def _identity(
    splits: dict[str, CocoSplit], previous: dict[str, Any], args: argparse.Namespace, folder: RunFolder, fabric: Any
) -> dict[str, Any]:
    """Returns what identifies the data, after the check of both splits; a resume trusts unchanged files."""
    identity: dict[str, Any] = {name: data.fingerprint(split) for name, split in splits.items()}
    identity["categories"] = [list(category) for category in splits["train"].categories]
    before = previous.get("data", {})
    if before and all(before.get(name) == identity[name] for name in splits):
        return identity | {"unusable": before["unusable"]}
    unusable: dict[str, list[str]] = {}
    if folder.is_main:
        for name, split in splits.items():
            data.warn_about(name, split)
        counts = ", ".join(f"{len(split.images)} {name}" for name, split in splits.items())
        cli.say(folder, f"checking {counts} images")
        report_path = folder.path / "bad_images.txt"
        unusable = data.check_split_images(splits, args.max_bad_fraction, report_path, args.workers)
    return identity | {"unusable": fabric.broadcast(unusable)}


def _report(splits: dict[str, CocoSplit], unusable: dict[str, list[str]], folder: RunFolder) -> None:
    """Writes data_report.json, or the entries of these splits in it."""
    path = folder.path / REPORT
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    if folder.is_main:
        write_json(path, entries | {name: data.report(split, unusable[name]) for name, split in splits.items()})


def _fit(
    fabric: Any,
    detector: Detector,
    train_set: TrainingImages,
    per_epoch: int,
    recipe: DetRecipe,
    folder: RunFolder,
    args: argparse.Namespace,
    measure: Callable[[int], Any],
) -> int:
    """Trains the detector; it ends with the averaged weights where the recipe has an average. Returns the updates."""
    total_steps = recipe.total_steps(per_epoch)
    cli.say(
        folder,
        f"{len(train_set)} images with objects, {total_steps} updates of {recipe.batch_size} "
        f"({total_steps / per_epoch:.1f} epochs), peak lr {recipe.lr:.3g}, {recipe.encoder}, {fabric.device}",
    )
    average = None if recipe.ema is None else WeightAverage(detector, recipe.ema)

    def evaluate(step: int) -> None:
        with nullcontext() if average is None else average.applied(detector):
            measure(step)

    finetune(
        fabric,
        detector,
        train_set,
        len(train_set),
        recipe,
        folder,
        args,
        title="detector",
        total_steps=total_steps,
        steps_per_epoch=per_epoch,
        average=average,
        evaluate=evaluate,
        collate_fn=collate,
    )
    if average is not None:
        average.copy_to(detector)
    return total_steps


def _measure(
    fabric: Any,
    detector: Detector,
    split: CocoSplit,
    recipe: DetRecipe,
    folder: RunFolder,
    args: argparse.Namespace,
) -> dict[str, Any] | None:
    """Evaluates a split; returns the contents of results.json in the main process, None in the others."""
    start = time.monotonic()
    detections: list[Detection] = []
    paths, sizes = paths_and_sizes(split)
    for index, found in detect_all(fabric, detector, paths, sizes, recipe, args.workers):
        detections += to_coco(split.images[index].id, found, split.categories)
    if fabric.world_size > 1:
        parts: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(parts, detections)
        detections = [detection for part in parts for detection in part]
    if not folder.is_main:
        return None
    results = coco_ap(split, detections, recipe.detections_per_image)
    seconds = time.monotonic() - start
    cli.say(folder, f"evaluated {len(paths)} images, {len(detections)} detections, in {seconds:.1f} s")
    for kind, values in results.items():
        shown = "  ".join(f"{key} {'-' if value is None else f'{value:.2f}'}" for key, value in values.items())
        cli.say(folder, f"{kind}: {shown}")
    write_json(folder.path / "detections.json", detections)
    return results


def _load(detector: Detector, tensors: dict[str, torch.Tensor], source: str, folder: RunFolder) -> None:
    load_strictly(detector, tensors, source, folder.path, "leave away key=value words that change the model")
