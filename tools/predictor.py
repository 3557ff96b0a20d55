"""A trained run as a Python object: an image in, what its model says of it out; the same numbers as `--predict`.

from tools.predictor import load_predictor

detector = load_predictor("runs/mine_det")
found = detector("image.jpg")
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pretrain.data.decode import UnreadableImage, read_image, to_rgb, turn_of
from pretrain.training.distributed import FABRIC_PRECISIONS, check_device
from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import CONFIG
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.task import Task
from tools.finetuning.trained import load_newest, use_run, whole_config


class Predictor:
    """The model of a run of `train_det`, `train_seg` or `train_cls`; made by `load_predictor`.

    Attributes:
        model: the trained module, in evaluation, on the device.
        class_names: by label, from 0.
        source: which of the run's weights it has.
        task: what the run is, with its recorded values.
    """

    def __init__(self, task: Task, config: dict[str, Any], device: str) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment

        self.task = task
        self.model: Any = use_run(task, config)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        self._fabric = Fabric(
            accelerator=device,
            devices=1,
            precision=FABRIC_PRECISIONS[task.recipe.precision],  # type: ignore[arg-type]
            plugins=[LightningEnvironment()],  # one process, whatever a cluster's variables say
        )
        self.source = load_newest(task, self.model, task.options.output, self._fabric)
        self.model.eval()
        self.class_names = task.class_names

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> dict[str, Any]:
        """Returns what the model says of one image, in NumPy arrays.

        Of a detector `boxes` float64 `(N, 4)` x1, y1, x2, y2 in pixels of the image, `labels` int64 `(N,)`, `scores`
        `(N,)` in [0, 1], and `masks` bool `(N, H, W)` (None without a mask head), the strongest first; of a segmentor
        `labels` `(H, W)`; of a classifier `scores` `(K,)`, which add up to 1.

        Args:
            image: a file, a PIL image (turned upright as its EXIF data say), or RGB uint8 `(H, W, 3)`; `(H, W)` is
                gray, of more than 8 bits too.

        Raises:
            ValueError: it cannot be read, or is none of these.
        """
        path = str(image) if isinstance(image, str | Path) else ""
        with torch.inference_mode():
            return self.task.answer(self._fabric, self.model, self._upright(image), path)

    def _upright(self, image: str | Path | Image.Image | np.ndarray) -> Image.Image:
        value_range = self.task.value_range
        if isinstance(image, str | Path):
            try:
                return read_image(Path(image).expanduser(), value_range)
            except UnreadableImage as error:
                raise UserError(f"{image} cannot be read: {error}") from None
        try:
            pictured = _pictured(image)
            pictured.load()
            turn = turn_of(pictured)
            rgb = to_rgb(pictured, value_range)  # before it is turned: the copy loses the tags that say what is white
            return rgb if turn is None else rgb.transpose(turn)
        except OSError as error:  # Pillow decodes a file that it has opened here
            raise UserError(f"{image!r} cannot be read: {error}") from None


def _pictured(image: Any) -> Image.Image:
    """Returns a PIL image of what is meant to be one.

    Raises:
        ValueError: it is not.
    """
    made = image if isinstance(image, Image.Image) else None
    if isinstance(image, np.ndarray) and image.size and (image.ndim == 2 or image.shape[2:] == (3,)):
        with suppress(TypeError):  # of Pillow, for shapes and types that it does not know
            made = Image.fromarray(image)
    if made is None or not (made.width and made.height):
        what = f"an array {image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else repr(image)[:80]
        raise UserError(f"{what} is no image: give a file, a PIL image, or RGB as uint8 (H, W, 3)")
    return made


def load_predictor(output: str | Path, device: str = "auto", best: bool = False) -> Predictor:
    """Returns the model of a run, ready for images; the run may still be training.

    Args:
        output: `--output` of the run.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        best: take the best evaluated weights, and not the newest.

    Raises:
        ValueError: no run there, none of a fine-tuning tool, or weights that are missing or damaged.
    """
    check_device(device)
    folder = Path(output).expanduser()
    config = read_object(folder / CONFIG)
    options = FinetuneOptions(
        output=folder,
        resume=False,
        workers=0,
        save_every=0,
        log_every=0,
        max_bad_fraction=0.0,
        device=device,
        weights=None,
        eval_only=False,
        predict=None,
        best=best,
        trains=False,
    )
    with whole_config(folder, str(config.get("command"))):
        task = _task_of(config, options)
    return Predictor(task, config, device)


def _task_of(config: dict[str, Any], options: FinetuneOptions) -> Task:
    """Returns the task of the tool that a run's config.json names, without data and values: those of the run follow."""
    command = config.get("command")
    if command == "train_det":
        from det_configs.common.recipe import DetRecipe
        from tools.detection.task import DetectionTask

        return DetectionTask(options, config["config"], DetRecipe(), {}, {}, "auto")
    if command == "train_seg":
        from tools.segmentation.recipe import SegRecipe
        from tools.segmentation.task import SegmentationTask

        return SegmentationTask(options, config["config"], SegRecipe({}), {}, None, None)
    if command == "train_cls":
        from tools.classification.data import DataOptions
        from tools.classification.recipes import ClsRecipe
        from tools.classification.task import ClassificationTask

        return ClassificationTask(options, config["recipe"], ClsRecipe(), {}, DataOptions(None))
    raise UserError(
        f"{options.output} holds no run of tools/train_det.py, train_seg.py or train_cls.py: name the --output of one"
    )
