"""Fine-tunes UperNet (MMSegmentation) on the encoder: writes results.json with mIoU into --output."""

from __future__ import annotations

import _path  # noqa: F401
import argparse
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitmask_backbones.errors import UserError, check_choice
from tools import cli
from tools.segmentation.config import (
    check_config,
    config_path,
    derive,
    gives_lr,
    load_config,
    override,
    scale_lr,
)

if TYPE_CHECKING:
    from pretrain.run_folder import RunFolder
    from pretrain.signals import StopSignals
    from tools.segmentation.classes import Classes
    from tools.segmentation.pairs import Split

ARTEFACT = "results.json"
BAD_IMAGES = "bad_images.txt"
TYPES = {
    "steps": cli.positive_int,
    "batch_size": cli.positive_int,
    "img_size": cli.positive_int,
    "seed": cli.non_negative_int,
}
EXAMPLES = """examples:
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --weights encoder.safetensors --output DIR
  python tools/train_seg.py seg_configs/camvid_tiny.py --data CAMVID --output DIR --eval-only
  python tools/train_seg.py seg_configs/camvid_tiny.py --output DIR --predict PICTURES

--data ROOT holds images/{train*,val*} and annotations/{train*,val*}; labels are one class index a pixel, 255 = ignore
(ADE20K's own folder names: 0 = ignore, and its 150 classes). --eval-only and --predict use the newest checkpoint in
--output; --predict with --weights on a new --output trains first."""


def build_parser() -> cli.Parser:
    """Returns the parser; values left out come from the config."""
    parser = cli.Parser(prog="tools/train_seg.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="a file like seg_configs/camvid_tiny.py, or its name")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values, dotted: optim_wrapper.optimizer.lr=1e-4"
    )
    parser.add_argument("--data", metavar="ROOT", help="folder with images/ and annotations/")
    parser.add_argument("--weights", metavar="FILE|none", help="encoder.safetensors, or none for random initialisation")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for everything the run writes")
    for name, kind in TYPES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help="default: the config's")
    parser.add_argument(
        "--lr",
        type=cli.positive_float,
        metavar="F",
        help="peak lr of the last layer; default: the config's, scaled with --batch-size",
    )
    parser.add_argument("--save-every", type=cli.positive_int, metavar="STEPS", help="default: the config's")
    parser.add_argument("--log-every", type=cli.positive_int, metavar="STEPS", help="default: the config's")
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=2, metavar="N", help="data processes (default 2)"
    )
    parser.add_argument("--precision", metavar="32|bf16", help="default 32")
    parser.add_argument(
        "--max-bad-fraction",
        type=cli.fraction,
        default=0.01,
        metavar="F",
        help="largest share of unreadable images (default 0.01)",
    )
    parser.add_argument("--classes", metavar="FILE.json", help='names, or {"classes", "palette", "reduce_zero_label"}')
    parser.add_argument("--eval-only", action="store_true", help="evaluate the newest checkpoint in --output")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--predict", metavar="IMAGE|DIR", help="draw overlays into --output/predictions")
    return parser


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Returns the options; `key=value` words may stand anywhere, which argparse alone does not allow."""
    parser = build_parser()
    with_value = {name for action in parser._actions if action.nargs != 0 for name in action.option_strings}
    pairs = [
        i
        for i, word in enumerate(argv)
        if "=" in word and not word.startswith("-") and (i == 0 or argv[i - 1] not in with_value)
    ]
    args = parser.parse_args([word for i, word in enumerate(argv) if i not in pairs])
    args.overrides += [argv[i] for i in pairs]
    return args


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = parse_args(argv)
    if args.precision is not None:
        check_choice("precision", args.precision, ["32", "bf16"])
    path = config_path(args.config)
    output = Path(args.output)
    trained = (output / "config.json").exists() and any((output / "checkpoints").glob("step_????????.pth"))
    train = args.resume or not (args.eval_only or (args.predict and trained))
    _check_options(args, train, trained)
    record = _read_record(output) if args.resume or not train else {}
    config = _config(path, args, record, use_recorded=not train)
    from tools.segmentation.runner import quiet_warnings  # mmseg, torch

    quiet_warnings()
    from pretrain.run_folder import RunFolder
    from pretrain.signals import StopSignals
    from tools.segmentation.predict import find_pictures

    pictures = find_pictures(Path(args.predict)) if args.predict else []
    with StopSignals() as stop, RunFolder.open(output, resume=args.resume or not train, artefact=ARTEFACT) as folder:
        if train:
            _train(config, folder, args, stop)
        if not train or pictures:
            if train:
                record = _read_record(output)
            _use_checkpoint(config, record, folder, args, pictures)
    return 0


def _read_record(output: Path) -> dict[str, Any]:
    """Returns config.json of the run in `output`; empty where there is none yet (then RunFolder decides).

    Raises:
        ValueError: it is damaged, or of another tool.
    """
    path = output / "config.json"
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["tool"] == "train_seg":
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} was not written by tools/train_seg.py, or is damaged: choose another --output")


def _check_options(args: argparse.Namespace, train: bool, trained: bool) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "tools/train_seg.py runs in one process: start it without torchrun; a smaller --batch-size scales the lr"
        )
    if args.eval_only and args.resume:
        raise UserError("--eval-only and --resume exclude each other: --resume evaluates at its end")
    if not train and not trained:
        raise UserError(f"--output {args.output} holds no checkpoint of a run: train first, without --eval-only")
    if args.data is None and (train or args.eval_only):
        raise UserError("--data ROOT is missing: name the folder with images/ and annotations/")
    if args.weights is None and train:
        raise UserError("--weights is missing: name an encoder.safetensors, or none for random initialisation")


def _config(path: Path, args: argparse.Namespace, record: dict[str, Any], use_recorded: bool) -> dict[str, Any]:
    """Returns the config with the words and options given.

    Options left away keep the values of the run in `record`. With `use_recorded` (evaluating, predicting) so does
    everything else; a resume reads the file again, so that a config that has changed is told apart.
    """
    config = load_config(path)
    values = record.get("values", {})
    if use_recorded:
        config |= {key: _tuples(value) for key, value in record["config"].items()}
    if values:
        config |= {name: values[name] for name in ("steps", "batch_size", "img_size", "seed")}
        config["optim_wrapper"]["optimizer"]["lr"] = values["lr"]
    batch_size = config["batch_size"]
    override(config, args.overrides)
    for name in ("steps", "batch_size", "img_size", "seed", "save_every", "log_every"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)
    if args.lr is not None:
        config["optim_wrapper"]["optimizer"]["lr"] = args.lr
    elif not gives_lr(args.overrides) and isinstance(config["batch_size"], int):
        scale_lr(config, batch_size)
    args.precision = args.precision or values.get("precision", "32")
    check_config(config)
    return config


def _tuples(value: Any) -> Any:
    """Returns JSON lists of numbers as the tuples that mmcv's transforms insist on."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_tuples(item) for item in value]
        return tuple(items) if items and all(isinstance(item, int | float) for item in items) else items
    return value


def _train(config: dict[str, Any], folder: RunFolder, args: argparse.Namespace, stop: StopSignals) -> None:
    from pretrain.loader import steps_per_epoch
    from pretrain.run_folder import write_json
    from splitmask_backbones.adapters import resolve_encoder
    from tools.segmentation import checkpoints
    from tools.segmentation.check import check_splits, median_frequency_weights
    from tools.segmentation.classes import find_classes
    from tools.segmentation.layout import make_layout
    from tools.segmentation.pairs import find_split, is_ade20k
    from tools.segmentation.runner import build_train_runner

    weights = None if args.weights == "none" else args.weights
    encoder = _encoder(config["model"]["backbone"], weights, resolve_encoder)
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
        print(f"{folder.path / ARTEFACT} is finished: nothing to do")
        return
    splits, report = check_splits(splits, classes, args.max_bad_fraction, folder.path / BAD_IMAGES)
    steps_per_epoch(len(splits["train"].pairs), config["batch_size"])  # the last thing that the user may have to change
    write_json(folder.path / "data_report.json", report)
    _tell_data(report)
    if weights is not None:
        print(encoder.load_report.summary())
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
    if folder.previous is None:
        folder.write_config(record)  # only now does the folder hold a run: everything that can be checked has been
    try:
        runner.train()
    finally:
        hook.close()
    _evaluate(runner, folder.path / ARTEFACT)


def _encoder(backbone: dict[str, Any], weights: str | None, resolve_encoder: Any) -> Any:
    known = {key: value for key, value in backbone.items() if key not in ("type", "out_channels", "norm")}
    try:
        return resolve_encoder(weights=weights, **known)
    except UserError as error:
        if weights is not None and "name the encoder of the file" in str(error):
            raise UserError(str(error).replace("(encoder=", "(model.backbone.encoder=")) from None
        raise


def _evaluate(runner: Any, path: Path) -> None:
    from pretrain.run_folder import write_json

    results = runner.test()
    write_json(path, results)
    for name, value in results["per_class"].items():
        print(f"  {name:24} {'undefined' if value is None else f'{value:6.2f}'}")
    shown = "  ".join(
        f"{name} {'undefined' if results[name] is None else f'{results[name]:.2f}'}"
        for name in ("mIoU", "mAcc", "aAcc")
    )
    print(f"{shown}  -> {path}")


def _use_checkpoint(
    config: dict[str, Any],
    record: dict[str, Any],
    folder: RunFolder,
    args: argparse.Namespace,
    pictures: list[tuple[Path, str]],
) -> None:
    """Evaluates (--eval-only) and draws (--predict) with the newest checkpoint, encoder and classes of the run."""
    from tools.segmentation import checkpoints
    from tools.segmentation.check import check_splits
    from tools.segmentation.classes import Classes
    from tools.segmentation.layout import make_layout
    from tools.segmentation.pairs import find_split
    from tools.segmentation.predict import predict_pictures
    from tools.segmentation.runner import build_test_runner

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
    path = checkpoints.newest(folder.path / "checkpoints")
    assert path is not None
    runner = build_test_runner(derive(config, len(classes.names)), folder.path, split, classes, args.workers)
    runner.model.load_state_dict(checkpoints.check_fits(path, runner.model))
    if split is not None:
        step = checkpoints.step_of(path)
        # An unfinished run must not look finished.
        _evaluate(runner, folder.path / (ARTEFACT if step >= total_steps else f"results_step_{step:08d}.json"))
    if pictures:
        pipeline = [step for step in config["test_pipeline"] if step["type"] != "SegLabel"]
        written = predict_pictures(runner.model, pipeline, pictures, classes, folder.path / "predictions")
        print(f"{len(written)} overlays -> {folder.path / 'predictions'}")


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
    import torch

    config = json.loads(json.dumps(config))
    values = {name: config.pop(name) for name in ("steps", "batch_size", "img_size", "seed")}
    values |= {"lr": config["optim_wrapper"]["optimizer"].pop("lr"), "precision": args.precision}
    free = {name: config.pop(name) for name in ("save_every", "log_every")}
    for name in ("classes", "palette", "reduce_zero_label"):
        config.pop(name)
    config["model"]["backbone"].pop("init_cfg", None)
    weights = "none"
    if args.weights != "none":
        with open(args.weights, "rb") as file:
            weights = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
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
            "palette": classes.palette,
            "workers": args.workers,
            "data": str(args.data),
            "weights": args.weights,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    cli.run(main)
