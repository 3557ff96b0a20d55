"""The two things that `tools/train_seg.py` does: train and evaluate a segmentor, or use a trained one."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pretrain.training.distributed import make_fabric
from pretrain.training.loader import steps_per_epoch
from pretrain.training.run_folder import RunFolder, write_json
from pretrain.training.signals import StopSignals
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of
from tools import cli
from tools.finetuning.load_table import LOAD_REPORT, mark, name_new_parts, tell
from tools.segmentation import checkpoints
from tools.segmentation.check import check_splits, median_frequency_weights
from tools.segmentation.classes import Classes, find_classes
from tools.segmentation.config import derive
from tools.segmentation.layout import make_layout
from tools.segmentation.pairs import Split, find_split, is_ade20k
from tools.segmentation.predict import predict_pictures
from tools.segmentation.processes import unwrapped
from tools.segmentation.runner import build_test_runner, build_train_runner, evaluate, test_pipeline
from tools.segmentation.tta import MeanOfViews

ARTEFACT = "results.json"
BAD_IMAGES = "bad_images.txt"


def train(config: dict[str, Any], folder: RunFolder, args: argparse.Namespace, stop: StopSignals) -> None:
    """Trains from the start or the newest checkpoint, evaluates, and writes results.json last."""
    fabric = make_fabric()  # device and processes; mmengine has its own way with precision
    weights = None if args.weights == "none" else args.weights
    encoder = _encoder(config["model"]["backbone"], weights)
    root = Path(args.data)
    layout = make_layout(config["layout"])
    splits = {name: find_split(root, name, layout) for name in ("train", "val")}
    classes = find_classes(root, args.classes, config, is_ade20k(root))
    if layout.label_ids and len(layout.label_ids) != len(classes.names):
        raise UserError(
            f"layout.label_ids holds {len(layout.label_ids)} numbers for {len(classes.names)} classes: give one a class"
        )
    record = _record(config, encoder.config, classes, args, splits)
    if folder.previous is not None:
        folder.write_config(record)  # compares
    if folder.finished:
        cli.say(folder, f"{folder.path / ARTEFACT} is finished: nothing to do")
        return
    checked: Any = None
    if folder.is_main:
        checked = check_splits(splits, classes, args.max_bad_fraction, folder.path / BAD_IMAGES)
    splits, report = fabric.broadcast(checked)
    steps_per_epoch(len(splits["train"].pairs), config["batch_size"])  # the last thing that the user may have to change
    if folder.is_main:
        write_json(folder.path / "data_report.json", report)
        _tell_data(report)
    if weights is not None:
        config["model"]["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": weights}
    class_weights = None
    if config["class_weights"] == "median_frequency":
        class_weights = median_frequency_weights(report["train"])
    runner, hook = build_train_runner(
        derive(config, len(classes.names), class_weights),
        folder.path,
        splits,
        classes,
        workers=args.workers,
        precision=args.precision,
        resume_from=checkpoints.newest(folder.path / "checkpoints") if folder.resumed else None,
        stop=stop,
    )
    segmentor = unwrapped(runner.model)
    load_report = segmentor.backbone.encoder.load_report
    if load_report is not None and folder.is_main:
        name_new_parts(load_report, segmentor, segmentor.backbone.encoder)
        tell(load_report, folder.path / LOAD_REPORT)
    if folder.previous is None:
        folder.write_config(record)  # only now does the folder hold a run: everything that can be checked has been
    try:
        runner.train()
    finally:
        hook.close()
    results = evaluate(runner, config)
    if config["eval_every"] is not None:
        plain = runner.val_loop.run() if config["use_tta"] else results  # compared with evaluations of one view
        if folder.is_main:
            checkpoints.record_best(folder.path, config["steps"], plain, unwrapped(runner.model))
    if folder.is_main:
        _tell_results(mark(results, load_report), folder.path / ARTEFACT)
    fabric.barrier()


def _encoder(backbone: dict[str, Any], weights: str | None) -> Any:
    known = {key: value for key, value in backbone.items() if key not in ("type", "out_channels", "norm")}
    try:
        return resolve_encoder(weights=weights, **known)
    except UserError as error:
        if weights is not None and "name the encoder of the file" in str(error):
            raise UserError(str(error).replace("(encoder=", "(model.backbone.encoder=")) from None
        raise


def _tell_results(results: dict[str, Any], path: Path) -> None:
    write_json(path, results)
    for name, value in results["per_class"].items():
        print(f"  {name:24} {'undefined' if value is None else f'{value:6.2f}'}")
    shown = "  ".join(
        f"{name} {'undefined' if results[name] is None else f'{results[name]:.2f}'}"
        for name in ("mIoU", "mAcc", "aAcc")
    )
    print(f"{shown}  -> {path}")


def use_checkpoint(
    config: dict[str, Any],
    record: dict[str, Any],
    folder: RunFolder,
    args: argparse.Namespace,
    pictures: list[tuple[Path, str]],
) -> None:
    """Evaluates (--eval-only) and draws (--predict) with the newest checkpoint, encoder and classes of the run."""
    data = record["data"]
    classes = Classes(data["classes"], record["free"]["palette"], data["reduce_zero_label"])
    encoder, total_steps = record["encoder"], record["values"]["steps"]
    backbone = config["model"]["backbone"]
    config["model"]["backbone"] = {
        key: backbone[key] for key in ("type", "pyramid", "out_channels", "norm") if key in backbone
    } | {"encoder": "vit_tiny", **encoder}  # the run's arguments win over all of the name's
    split = None
    if args.eval_only:
        found = {"val": find_split(Path(args.data), "val", make_layout(config["layout"]))}
        split = check_splits(found, classes, args.max_bad_fraction, folder.path / BAD_IMAGES)[0]["val"]
    if args.best:
        path = folder.path / checkpoints.BEST_WEIGHTS
        checkpoints.verify(path)
    else:
        newest = checkpoints.newest(folder.path / "checkpoints")
        assert newest is not None
        path = newest
    runner = build_test_runner(derive(config, len(classes.names)), folder.path, split, classes, args.workers)
    runner.model.load_state_dict(checkpoints.check_fits(path, runner.model))
    if split is not None:
        name = _results_name(path, total_steps, config["use_tta"], record["values"].get("tta", False), args.best)
        _tell_results(evaluate(runner, config), folder.path / name)
    if pictures:
        without_labels = [step for step in config["test_pipeline"] if step["type"] != "SegLabel"]
        pipeline = test_pipeline({**config, "test_pipeline": without_labels})
        model = MeanOfViews(runner.model) if config["use_tta"] else runner.model
        written = predict_pictures(model, pipeline, pictures, classes, folder.path / "predictions")
        print(f"{len(written)} overlays -> {folder.path / 'predictions'}")


def _results_name(path: Path, total_steps: int, use_tta: bool, run_uses_tta: bool, best: bool) -> str:
    """Returns the file of an evaluation: results.json is that of the finished run, as it was trained to be tested."""
    name = "results"
    if best:
        name += "_best"
    elif checkpoints.step_of(path) < total_steps:  # an unfinished run must not look finished
        name += f"_step_{checkpoints.step_of(path):08d}"
    return name + ("" if use_tta == run_uses_tta else "_tta" if use_tta else "_single") + ".json"


def _tell_data(report: dict[str, Any]) -> None:
    for name, counts in report.items():
        absent = [title for title, count in counts["classes"].items() if not count["pixels"]]
        bad = f", {counts['unreadable_images']} unreadable left out" if counts["unreadable_images"] else ""
        num_classes = len(counts["classes"])
        print(f"{name}: {counts['images']} images{bad}, {num_classes - len(absent)} of {num_classes} classes")
        if absent:
            listed = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            sys.stderr.write(f"warning: no pixel of {listed} in {name}\n")


def _record(
    config: dict[str, Any], encoder: dict[str, Any], classes: Classes, args: argparse.Namespace, found: dict[str, Split]
) -> dict[str, Any]:
    """Returns config.json: everything that the result depends on, and under "free" what it does not."""
    config = json.loads(json.dumps(config))
    values = {name: config.pop(name) for name in ("steps", "batch_size", "img_size", "seed")}
    values |= {"lr": config["optim_wrapper"]["optimizer"].pop("lr"), "precision": args.precision}
    values["tta"] = config.pop("use_tta")
    free = {name: config.pop(name) for name in ("save_every", "log_every", "eval_every", "visualizer")}
    for name in ("classes", "palette", "reduce_zero_label"):
        config.pop(name)
    config["model"]["backbone"].pop("init_cfg", None)
    weights = "none"
    if args.weights != "none":
        weights = f"sha256:{sha256_of(args.weights)}"
    return {
        "tool": "train_seg",
        "values": {**values, "weights": weights},
        "data": {
            **{name: split.fingerprint() for name, split in found.items()},
            "classes": classes.names,
            "reduce_zero_label": classes.reduce_zero_label,
        },
        "encoder": encoder,
        "config": config,
        "free": {
            **free,
            "config": Path(args.config).stem,
            "palette": classes.palette,
            "workers": args.workers,
            "data": str(args.data),
            "weights": args.weights,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
