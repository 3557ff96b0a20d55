"""The project's configs in mmseg's own tools: what mmengine's runner reads is derived from them, late.

    PYTHONPATH=. python MMSEG/tools/train.py seg_configs/camvid_tiny.py --cfg-options data_root=CAMVID

`runner_type = "SplitMaskRunner"` in the configs and this module in their `custom_imports` bring it into play. Hooks,
loggers and whatever else mmengine's runner knows are free to be added to a config: what stands in it is not replaced,
and single values (`--cfg-options train_dataloader.batch_size=4`) win over those that are derived.
"""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import tools.segmentation.model  # noqa: F401 (registers backbone, optimizer constructor and loss)
from pretrain.data.deep_images import range_of_images
from pretrain.training.processes import processes
from splitmask_backbones.convert.torch_files import harmless_types
from splitmask_backbones.errors import UserError
from tools.segmentation.check import count_classes
from tools.segmentation.class_weights import class_weights
from tools.segmentation.classes import Classes, find_classes
from tools.segmentation.config import check_config, defaults, derive
from tools.segmentation.dataset import SegFolder
from tools.segmentation.layout import find_split, is_ade20k, make_layout


@RUNNERS.register_module()
class SplitMaskRunner(Runner):
    """mmengine's runner for a config of seg_configs/."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """Returns the runner of a config with `data_root`."""
        cfg = copy.deepcopy(cfg)
        for key, value in mmengine_values(cfg.to_dict()).items():
            cfg[key] = value if key in ("model", "optim_wrapper") else _completed(cfg.get(key), value)
        _keep_range(cfg)
        return super().from_cfg(cfg)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Returns the checkpoint after its weights are loaded; a resume reads it here too.

        mmengine 0.10 gives `torch.load` its log as well, which torch 2.6 and later refuse to read.
        """
        with torch.serialization.safe_globals(harmless_types()):
            return super().load_checkpoint(filename, *args, **kwargs)


_from_cfg = Runner.from_cfg.__func__  # type: ignore[attr-defined]


def _from_cfg_of_its_type(cls: type[Runner], cfg: Any) -> Runner:
    """Gives a config that names `SplitMaskRunner` to it: mmseg's tools/test.py asks `Runner`, whatever it says."""
    if cls is Runner and cfg.get("runner_type") == SplitMaskRunner.__name__:
        return SplitMaskRunner.from_cfg(cfg)
    return _from_cfg(cls, cfg)


Runner.from_cfg = classmethod(_from_cfg_of_its_type)  # type: ignore[assignment]


def _completed(given: Any, derived: Any) -> Any:
    """Returns what is derived with what is given of it; what names a type or data of its own stays as it is."""
    if given is None:
        return derived
    if not isinstance(given, dict) or not isinstance(derived, dict) or not given.keys().isdisjoint(("type", "dataset")):
        return given
    return Config._merge_a_into_b(given, derived)


def mmengine_values(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what mmengine's runner reads: model, data loaders, loops, evaluators, schedule, hooks.

    `batch_size` counts the images of a step in all processes and micro-batches, as everywhere in the project; mmengine
    counts in micro-batches ("iter"): every length is `accumulate` times as long there.

    Class weights by frequency are those of `tools/train_seg.py`: all training labels are read first.

    Raises:
        ValueError: no `data_root`, what `tools/train_seg.py` alone can do (`ema`, `use_tta`, `labels`), a batch that
            cannot be divided, or labels that cannot be counted.
    """
    config = {**defaults(), **config}
    if not config["data_root"]:
        raise UserError("data_root is missing: name the folder of the data with --cfg-options data_root=ROOT")
    if config["ema"] is not None:
        raise UserError("ema is that of tools/train_seg.py: use it, or ema=none with an EMAHook of mmengine")
    if config["use_tta"]:
        raise UserError(
            "use_tta is that of tools/train_seg.py, and mmengine's runner would test at one scale: use it, or "
            "--cfg-options use_tta=False"
        )
    if config["labels"] != 1:
        raise UserError(f"labels={config['labels']} is that of tools/train_seg.py: use it, or --cfg-options labels=1.0")
    check_config({**config, "custom_hooks": None})  # which are free here
    root, micro = Path(config["data_root"]), config["accumulate"]
    parts = micro * processes().world_size
    if config["batch_size"] % parts:
        raise UserError(
            f"batch_size {config['batch_size']} counts the images of all processes and micro-batches: it must be a "
            f"multiple of {parts} (accumulate {micro} x {processes().world_size} processes)"
        )
    steps = config["steps"] * micro
    classes = find_classes(root, None, config, is_ade20k(root))
    config = derive(config, len(classes.names), _class_weights(config, classes))
    warmup = micro * round(config["schedule"]["warmup_fraction"] * config["steps"])
    # A step is made at the last of its micro-batches; mmengine would make the last one of all with an lr of 0.
    decay = {"begin": warmup + micro - 1, "end": steps + micro}
    val = _loader(config, classes, "val", 1, {"type": "DefaultSampler", "shuffle": False})
    batch_size = config["batch_size"] // parts
    wrapper = {**config["optim_wrapper"], "accumulative_counts": micro}
    return {
        "model": config["model"],
        "optim_wrapper": wrapper,
        "train_dataloader": _loader(config, classes, "train", batch_size, {"type": "InfiniteSampler", "shuffle": True}),
        "val_dataloader": val,
        "test_dataloader": copy.deepcopy(val),
        "train_cfg": {
            "type": "IterBasedTrainLoop",
            "max_iters": steps,
            "val_interval": micro * (config["eval_every"] or config["steps"]),
        },
        "val_cfg": {"type": "ValLoop"},
        "test_cfg": {"type": "TestLoop"},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "param_scheduler": [
            *([{"type": "LinearLR", "start_factor": 1 / warmup, "by_epoch": False, "end": warmup}] if warmup else []),
            {"type": "PolyLR", "power": config["schedule"]["power"], "eta_min": 0.0, "by_epoch": False, **decay},
        ],
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": micro * config["log_every"], "log_metric_by_epoch": False},
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": micro * config["save_every"]},
        },
        "log_processor": {"by_epoch": False},
        "env_cfg": {"cudnn_benchmark": False, "dist_cfg": {"backend": "nccl"}},
        "randomness": {"seed": config["seed"]},
        "sync_bn": "torch",
    }


def _class_weights(config: dict[str, Any], classes: Classes) -> list[float] | None:
    way = config["class_weights"]
    if way in (None, "none"):
        return None
    layout = make_layout(config["layout"])
    return class_weights(way, count_classes(find_split(Path(config["data_root"]), "train", layout), classes))


def _keep_range(cfg: Any) -> None:
    """Writes the range of the training images into what mmseg's inference reads images by: it has a file alone."""
    found = None
    with suppress(UserError):  # a test may have no training images at hand
        found = range_of_images(find_split(Path(cfg.data_root), "train", make_layout(cfg.get("layout"))).image_list())
    if found is not None:
        for step in cfg.get("test_pipeline", ()):
            if step.get("type") == "SegImage":
                step.setdefault("value_range", list(found.value_range))


def _loader(
    config: dict[str, Any], classes: Classes, split: str, batch_size: int, sampler: dict[str, Any]
) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "num_workers": 2,
        "persistent_workers": True,
        "sampler": sampler,
        "dataset": {
            "type": SegFolder.__name__,
            "data_root": str(config["data_root"]),
            "split": split,
            "layout": config["layout"],
            "classes": classes.names,
            "palette": classes.palette,
            "reduce_zero_label": classes.reduce_zero_label,
            "pipeline": config["train_pipeline" if split == "train" else "test_pipeline"],
            "test_mode": split == "val",
        },
    }
