"""mmengine's Runner for one run folder: quiet on the screen, its full log in DIR/log."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmseg.utils import register_all_modules
from torch import nn
from torch.utils.data import DataLoader

import splitmask_backbones.mmseg  # noqa: F401 (registers the backbone and the optimizer constructor)
import tools.segmentation.loss  # noqa: F401 (registers the loss with class weights)
from pretrain.training.distributed import is_together
from pretrain.training.loader import steps_per_epoch
from pretrain.training.signals import StopSignals, ignore_in_worker
from splitmask_backbones.errors import UserError
from tools.segmentation import checkpoints
from tools.segmentation.classes import Classes
from tools.segmentation.dataset import SegPairs
from tools.segmentation.loop import RunHook, TestProgressHook
from tools.segmentation.pairs import Split
from tools.segmentation.processes import distributed_on_cpu, unwrapped
from tools.segmentation.results import ClassIoU
from tools.segmentation.tta import MeanOfViews, tta_pipeline


class QuietRunner(Runner):
    """A Runner whose messages go to its log file; the screen has the project's own lines."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Returns mmengine's logger with errors alone on the screen."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Returns the model for this process, or for all of them."""
        if self.distributed and not torch.cuda.is_available():
            return distributed_on_cpu(model, self.cfg.get("find_unused_parameters", False))
        return super().wrap_model(model_wrapper_cfg, model)


def quiet_warnings() -> None:
    """Hides the host frameworks' deprecation warnings: the user can do nothing about them."""
    for module in ("mmengine", "mmcv", "mmseg", "torch", "importlib"):
        warnings.filterwarnings("ignore", module=rf"{module}\b")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def _start_worker(worker: int) -> None:
    ignore_in_worker()
    torch.set_num_threads(1)


@contextmanager
def config_errors() -> Iterator[None]:
    """Turns the registries' answers to a wrong name or argument in the config into the user's error."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, KeyError, AssertionError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"the config does not build a segmentor ({text}): correct its values") from error


def _runner(config: dict[str, Any], folder: Path, hooks: list[Hook], **kwargs: Any) -> QuietRunner:
    with config_errors():
        whole = Config({"sync_bn": "torch", **config})  # batch statistics over all GPUs, mmseg's habit
        return QuietRunner(
            model=whole.model,
            work_dir=str(folder / "log"),
            default_scope="mmseg",
            launcher="pytorch" if is_together() else "none",
            default_hooks={"logger": None, "checkpoint": None, "param_scheduler": None, "sampler_seed": None},
            env_cfg={"cudnn_benchmark": False, "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}},
            randomness={"seed": config["seed"]},
            experiment_name=folder.resolve().name,
            cfg=whole,
            visualizer=whole.visualizer,
            custom_hooks=[*hooks, *(whole.custom_hooks or [])],
            **kwargs,
        )


def _dataset(split: Split, classes: Classes, pipeline: list[dict[str, Any]], seed: int, test_mode: bool) -> SegPairs:
    register_all_modules(init_default_scope=True)
    with config_errors():
        dataset = SegPairs(split, classes, pipeline, seed=seed, test_mode=test_mode)
        dataset[0, 0, 0]  # a pipeline that fails must do so now, not at the evaluation after a long training
    return dataset


def build_test_runner(
    config: dict[str, Any], folder: Path, split: Split | None, classes: Classes, workers: int
) -> QuietRunner:
    """Returns a runner that can evaluate (with a `split`) and predict; its model is as initialised."""
    part = {} if split is None else _evaluation("test", test_pipeline(config), config, split, classes, workers)
    return _runner(config, folder, [TestProgressHook()], **part)


def test_pipeline(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the pipeline of the evaluation that counts, with every view of an image where the config says so."""
    pipeline = config["test_pipeline"]
    return tta_pipeline(pipeline, config["tta"]["ratios"], config["tta"]["flip"]) if config["use_tta"] else pipeline


def evaluate(runner: QuietRunner, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the contents of results.json."""
    segmentor = runner.model
    if config["use_tta"]:
        runner.model = MeanOfViews(unwrapped(segmentor))
    try:
        return runner.test()
    finally:
        runner.model = segmentor


def _evaluation(
    kind: str, pipeline: list[dict[str, Any]], config: dict[str, Any], split: Split, classes: Classes, workers: int
) -> dict[str, Any]:
    """Returns the runner's arguments for a loop over a split; `kind` is "val" (while it trains) or "test"."""
    dataset = _dataset(split, classes, pipeline, config["seed"], test_mode=True)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=1,
        sampler=DefaultSampler(dataset, shuffle=False),  # this process's share; all of them where it is alone
        num_workers=workers,
        collate_fn=pseudo_collate,
        worker_init_fn=_start_worker,
    )
    loop = {"type": "ValLoop" if kind == "val" else "TestLoop"}
    # "gpu" is mmengine's word for the processes' own way to each other, gloo included; "cpu" writes into the folder
    # that the user stands in.
    evaluator = {"type": ClassIoU, "collect_device": "gpu"}
    return {f"{kind}_dataloader": loader, f"{kind}_cfg": loop, f"{kind}_evaluator": evaluator}


def build_train_runner(
    config: dict[str, Any],
    folder: Path,
    splits: dict[str, Split],
    classes: Classes,
    *,
    workers: int,
    precision: str,
    resume_from: Path | None,
    stop: StopSignals,
) -> tuple[QuietRunner, RunHook]:
    """Returns a runner that trains (from `resume_from`, if any) and evaluates, and the hook to close after an error."""
    dataset = _dataset(splits["train"], classes, config["train_pipeline"], config["seed"], test_mode=False)
    hook = RunHook(
        folder,
        stop,
        batch_size=config["batch_size"],
        steps_per_epoch=steps_per_epoch(len(dataset), config["batch_size"]),
        total_steps=config["steps"],
        log_every=config["log_every"],
        save_every=config["save_every"],
        eval_every=config["eval_every"],
    )
    evaluations = _evaluation("test", test_pipeline(config), config, splits["val"], classes, workers)
    if config["eval_every"] is not None:
        evaluations |= _evaluation("val", config["test_pipeline"], config, splits["val"], classes, workers)
    runner = _runner(
        config,
        folder,
        [hook, TestProgressHook()],
        # Never iterated: the loop seeks its own batches in the dataset.
        train_dataloader=DataLoader(dataset, batch_size=config["batch_size"], collate_fn=pseudo_collate),
        train_cfg={
            "type": "SeekingTrainLoop",
            "max_iters": config["steps"],
            "batch_size": config["batch_size"],
            "workers": workers,
            "seed": config["seed"],
            **config["schedule"],
        },
        optim_wrapper={
            **config["optim_wrapper"],
            "type": "Bf16OptimWrapper" if precision == "bf16" else "OptimWrapper",
        },
        load_from=None if resume_from is None else str(resume_from),
        resume=resume_from is not None,
        **evaluations,
    )
    if resume_from is not None:
        checkpoints.check_fits(resume_from, unwrapped(runner.model))
    return runner, hook
