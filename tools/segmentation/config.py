"""A config file, `key=value` overrides and options to one plain dictionary; what derives from it is derived last."""

import copy
import difflib
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError, check_choice, nearest
from splitmask_backbones.registry import ENCODERS
from splitmask_backbones.values import parse_value
from tools.finetuning.config_file import config_file
from tools.segmentation.class_weights import CLASS_WEIGHTS
from tools.segmentation.layout import make_layout

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "seg_configs"

REQUIRED = ("model", "optim_wrapper", "schedule", "steps", "batch_size", "img_size", "train_pipeline", "test_pipeline")

OPTIONAL = (
    *("seed", "labels", "log_every", "save_every", "eval_every", "accumulate", "ema", "class_weights"),
    *("find_unused_parameters", "tta", "use_tta", "slide_stride", "layout", "classes", "palette", "reduce_zero_label"),
    *("custom_hooks", "visualizer", "data_root"),
)
"""What a config may omit: then the value of seg_configs/_base_ holds, or None where that has none."""

FRAMEWORK = ("custom_imports", "default_scope", "norm_cfg", "runner_type")
"""Names that mmengine's configs may hold besides; helper variables of a file start with an underscore."""


def config_path(name: str) -> Path:
    """Returns the file for `CONFIG`, as of `config_file`. Free of torch."""
    return config_file(name, CONFIG_FOLDER)


def load_config(path: Path) -> dict[str, Any]:
    """Returns the config with its `_base_` files merged in, as plain dictionaries.

    Raises:
        ValueError: it cannot be read, a required key is missing, or a name is unknown.
    """
    try:
        config = _read(path)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program: anything can go wrong in it
        raise UserError(f"config {path} cannot be read ({type(error).__name__}: {error}): correct the file") from error
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise UserError(f"config {path} has no '{missing[0]}': start from one of {CONFIG_FOLDER.name}/")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in config:
        known = (*REQUIRED, *OPTIONAL, *FRAMEWORK)
        if key not in known:
            raise UserError(
                f"config {path}: unknown name '{key}': {nearest(key, known)} "
                "(a helper variable's name starts with an underscore)"
            )
    return {**defaults(), **config}


def defaults() -> dict[str, Any]:
    """Returns the values of OPTIONAL, as seg_configs/_base_ has them."""
    base: dict[str, Any] = {}
    for name in ("upernet", "schedule", "data"):
        base |= _read(CONFIG_FOLDER / "_base_" / f"{name}.py")
    return {name: base.get(name) for name in OPTIONAL}


def _read(path: Path) -> dict[str, Any]:
    from mmengine.config import Config

    return Config.fromfile(str(path), import_custom_modules=False).to_dict()


def override(config: dict[str, Any], texts: list[str]) -> None:
    """Puts `key=value` texts into the config in place; keys are dotted, `train_pipeline.2.ratio_range=(1,2)` too.

    `model.backbone` also takes every keyword argument of `VisionTransformer`.

    Raises:
        ValueError: no `=`, an unknown key (with the nearest), or a value of another type than the config's.
    """
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"'{text}' is no key=value: write for example optim_wrapper.optimizer.lr=1e-4")
        _set(config, key.strip(), parse_value(key.strip(), value.strip()))


def scale_lr(config: dict[str, Any], before: int) -> None:
    """Scales the lr in place with the batch: lr times batch_size over the one `before` (the linear rule)."""
    optimizer = config["optim_wrapper"]["optimizer"]
    if config["batch_size"] != before:
        optimizer["lr"] = optimizer["lr"] * config["batch_size"] / before


LR_KEY = "optim_wrapper.optimizer.lr"


def gives_lr(texts: list[str]) -> bool:
    """Returns whether `key=value` texts hold the lr, so that the linear rule does not apply."""
    return any(text.partition("=")[0].strip() == LR_KEY for text in texts)


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    place: Any = config
    *parents, last = key.split(".")
    for part in parents:
        place = place[_step(config, place, part, key)]
    if key == f"model.backbone.{last}" and last not in place:
        from splitmask_backbones.vit import ARGUMENTS

        if last in ARGUMENTS:
            place[last] = value
            return
    step = _step(config, place, last, key)
    if not _same_kind(place[step], value):
        raise UserError(
            f"{key}={value} is a {type(value).__name__}, but the config's value {place[step]!r} is a "
            f"{type(place[step]).__name__}: give the same kind"
        )
    if isinstance(place[step], float) and isinstance(value, int):
        value = float(value)  # else another run of the same config could not give it a fraction
    place[step] = tuple(value) if isinstance(place[step], tuple) else value


def _step(config: dict[str, Any], place: Any, part: str, key: str) -> Any:
    if isinstance(place, dict) and part in place:
        return part
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return int(part)
    known = _keys(config)
    if not difflib.get_close_matches(key, known, n=1, cutoff=0.8):  # only misspelt: told before torch is imported
        from splitmask_backbones.vit import ARGUMENTS

        known += [f"model.backbone.{name}" for name in ARGUMENTS]
    raise UserError(f"unknown config key '{key}': {nearest(key, known)}")


def _keys(value: Any, prefix: str = "") -> list[str]:
    """Returns the dotted keys of a config; of lists those of dictionaries alone: nobody means `palette.9`."""
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    keys = []
    for name, item in items:
        keys += [f"{prefix}{name}", *_keys(item, f"{prefix}{name}.")]
    return keys


def _same_kind(old: Any, new: Any) -> bool:
    if old is None or new is None:
        return True
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, int):
        return isinstance(new, int)
    if isinstance(old, float):
        return isinstance(new, int | float)
    if isinstance(old, list | tuple):
        return isinstance(new, list | tuple)
    return isinstance(new, type(old))


def check_config(config: dict[str, Any]) -> None:
    """Raises ValueError, naming option and value, for numbers that cannot be trained with."""
    for key in ("ratios", "flip"):
        if key not in config["tta"]:
            raise UserError(f"tta has no '{key}': write tta=dict(ratios=(0.5, 1.0, 1.5), flip=True)")
    for key in ("steps", "batch_size", "img_size", "accumulate", "log_every", "save_every"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"--{key.replace('_', '-')} {config[key]} must be a whole number of at least 1")
    if config["eval_every"] is not None and (type(config["eval_every"]) is not int or config["eval_every"] < 1):
        raise UserError(f"eval_every={config['eval_every']} must be a whole number of at least 1, or none")
    if config["batch_size"] % config["accumulate"]:
        raise UserError(f"batch_size {config['batch_size']} must be a multiple of accumulate {config['accumulate']}")
    if type(config["labels"]) not in (int, float) or not 0 < config["labels"] <= 1:
        raise UserError(f"--labels {config['labels']} must be a share of the training images above 0 and up to 1")
    ema = config["ema"]
    if ema is not None and (type(ema) not in (int, float) or not 0 <= ema <= 1):
        raise UserError(f"ema={ema} must be a decay in [0, 1], or none")
    stride = config["slide_stride"]
    if type(stride) not in (int, float) or not 0 < stride <= 1:
        raise UserError(f"slide_stride={stride} must be a share of the window, above 0 and up to 1, such as 0.67")
    if config["custom_hooks"]:
        raise UserError("custom_hooks need mmengine's runner: start the config with mmseg's own tools/train.py")
    ratios = config["tta"]["ratios"]
    if not isinstance(ratios, list | tuple) or not ratios or not all(type(r) in (int, float) and r > 0 for r in ratios):
        raise UserError(f"tta.ratios={ratios} must be factors above 0, as (0.5, 1.0, 1.5)")
    make_layout(config["layout"])
    patch_size = config["model"]["backbone"].get("patch_size") or 16
    if config["img_size"] < 2 * patch_size:
        raise UserError(
            f"--img-size {config['img_size']} is too small: "
            f"use at least 2 x 2 patches of {patch_size}, {2 * patch_size} pixels"
        )
    if config["batch_size"] == config["accumulate"]:
        raise UserError(f"--batch-size {config['batch_size']} is too small for the heads' BatchNorm: use 2 or more")
    if config["class_weights"] is not None:
        check_choice("class_weights", config["class_weights"], ["none", *CLASS_WEIGHTS])


def derive(config: dict[str, Any], num_classes: int, class_weights: list[float] | None = None) -> dict[str, Any]:
    """Returns a copy in which everything that follows from other values is filled in.

    `num_classes` and `in_channels` of the heads, the weights of the classes in their losses, the crop, the size that
    crops are padded to, and the sliding window with its stride.
    """
    config = copy.deepcopy(config)
    model, size = config["model"], config["img_size"]
    out_channels = _map_channels(model["backbone"])
    for head in (model["decode_head"], model.get("auxiliary_head")):
        for part in head if isinstance(head, list) else [head] if head else []:
            _fit_head(part, num_classes, out_channels, class_weights)
    model["data_preprocessor"]["size"] = (size, size)
    if model["test_cfg"].get("mode") == "slide":
        stride = int(size * config["slide_stride"] + 1e-6)
        model["test_cfg"] |= {"crop_size": (size, size), "stride": (stride, stride)}
    for transform in config["train_pipeline"]:
        if transform["type"] == "RandomCrop":
            transform["crop_size"] = (size, size)
    return config


def _map_channels(backbone: dict[str, Any]) -> int:
    """Returns the channels of the backbone's maps: the encoder's width with pyramid="taps", else `out_channels`."""
    if backbone.get("pyramid") != "taps":
        return backbone.get("out_channels", 256)
    if backbone.get("embed_dim") and not backbone.get("init_cfg"):
        return backbone["embed_dim"]
    if backbone.get("encoder") in ENCODERS and not backbone.get("embed_dim"):
        return ENCODERS[backbone["encoder"]]["embed_dim"]
    if not backbone.get("init_cfg") or not backbone.get("embed_dim") and backbone.get("encoder") is not None:
        return 0  # building the backbone says what is wrong
    from splitmask_backbones.checkpoints import read_encoder_file  # torch

    return read_encoder_file(backbone["init_cfg"]["checkpoint"]).config["embed_dim"]


def _fit_head(head: dict[str, Any], num_classes: int, out_channels: int, class_weights: list[float] | None) -> None:
    """Fills a head's classes, channels and class weights in, in place."""
    index, channels = head.get("in_index"), head.get("in_channels")
    head["num_classes"] = num_classes
    if isinstance(index, list | tuple):
        head["in_channels"] = [out_channels] * len(index)
    else:  # Mask2FormerHead takes all maps and has no in_index
        head["in_channels"] = [out_channels] * len(channels) if isinstance(channels, list | tuple) else out_channels
    if isinstance(head.get("loss_cls"), dict) and head["loss_cls"].get("class_weight"):
        head["loss_cls"]["class_weight"] = [1.0] * num_classes + [head["loss_cls"]["class_weight"][-1]]  # "no object"
    if class_weights is None:
        return
    if not isinstance(head.get("loss_decode"), dict):
        raise UserError(f"class_weights: {head.get('type')} has no single loss_decode to be weighted: omit them")
    kind = head["loss_decode"].get("type")
    if kind not in ("CrossEntropyLoss", "ClassWeightedCrossEntropy") or head["loss_decode"].get("use_sigmoid"):
        raise UserError(f"class_weights: they weight a softmax cross-entropy, and loss_decode is {kind}: omit them")
    weight = head["loss_decode"].get("loss_weight", 1.0)
    head["loss_decode"] = {"type": "ClassWeightedCrossEntropy", "class_weight": class_weights, "loss_weight": weight}
