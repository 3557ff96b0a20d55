"""What `tools/train_det.py` brings to the skeleton of the fine-tuning tools."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from det_configs.common.recipe import DetRecipe
from pretrain.training.distributed import gather
from pretrain.training.run_folder import RunFolder, write_json
from splitmask_backbones.errors import UserError
from tools import cli
from tools.detection import splits as data
from tools.detection.coco import CocoSplit
from tools.detection.config import OPTIONS
from tools.detection.dataset import TrainingImages, collate, prepare
from tools.detection.detect import detect_all, detect_one
from tools.detection.draw import draw
from tools.detection.engines import build_detector, choose_engine
from tools.detection.evaluate import coco_ap, to_coco
from tools.detection.graph import graph_of
from tools.detection.rle import to_mask
from tools.finetuning.copies import warn_about_copies
from tools.finetuning.graph import Graph
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.pictures import Pictures
from tools.finetuning.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DRAWN_SCORE = 0.5
ALL_SAMPLES = (
    "--deterministic: detectron2's RoIAlign takes a number of samples that follows the box, and the one of that kind "
    "takes every pixel of a map, which may not fit on a card: --engine torchvision has a fixed number"
)
RECOMPILE_LIMIT = 64
"""Torchvision compiles its deterministic RoIAlign for no, one and more boxes and images, each with each. From torch's
limit of 8 on the next would run as it is, in far more memory, and which they are depends on what came before."""
logger = logging.getLogger(__name__)


class DetectionTask(Task):
    """Mask R-CNN, or Faster R-CNN with `masks=false`, with COCO data.

    Args:
        options, name, base, given: as for every task; the base is a `DetRecipe`.
        places: what the command line says about the data, as arguments of `splits.locate`.
    """

    command, noun = "train_det", "detector"
    remedy = "omit key=value pairs that change the model"

    def __init__(
        self,
        options: FinetuneOptions,
        name: str,
        base: DetRecipe,
        given: dict[str, Any],
        places: dict[str, str | None],
        engine: str,
    ) -> None:
        super().__init__(options, name, base, given)
        self.places, self.engine = places, engine
        self.splits: dict[str, CocoSplit] = {}
        self.unusable: dict[str, list[str]] = {}

    def find_data(self, needed: tuple[str, ...]) -> None:
        self.locations = data.locate(**self.places, needed=needed)

    def recorded(self, config: dict[str, Any]) -> DetRecipe:
        return DetRecipe(**config["values"], **config["recipe_values"])

    @property
    def categories(self) -> list[tuple[int, str]]:
        """Id and name of each label: of the training data, or of the run that is used."""
        if "train" in self.splits:
            return self.splits["train"].categories
        return [(id, name) for id, name in self.previous["data"]["categories"]]

    def check_data(self, folder: RunFolder, fabric: Fabric) -> dict[str, Any]:
        known = None if "train" in self.locations else self.categories
        self.splits = data.read_splits(self.locations, known, self.recipe.masks)
        for name, split in self.splits.items():
            some = data.labelled_images(name, split, self.recipe.labels, self.recipe.seed)
            if self.rehearsal is not None and name == "train":  # which counts those that are trained on
                some = [image for image in some if not image.is_empty]
            split.images = self.used(name, some)
        if folder.is_main:
            data.compare_objects(self.splits, self.recipe)
        identity: dict[str, Any] = {name: data.fingerprint(split) for name, split in self.splits.items()}
        identity |= self.choose_range(next(iter(self.splits.values())).image_list(), fabric)
        for split in self.splits.values():
            split.value_range = self.value_range
        identity["categories"] = [list(category) for category in self.categories]
        before = self.previous.get("data", {})
        if before and all(before.get(name) == identity[name] for name in self.splits):
            self.unusable = before["unusable"]
        else:
            self.unusable = fabric.broadcast(self._check_images(folder))
        for name, split in self.splits.items():
            data.without(split, self.unusable[name])
        return identity | {"unusable": self.unusable}

    def _check_images(self, folder: RunFolder) -> dict[str, list[str]]:
        if not folder.is_main:
            return {}
        for name, split in self.splits.items():
            data.warn_about(name, split)
        warn_about_copies({name: split.image_list() for name, split in self.splits.items()})
        counts = ", ".join(f"{len(split.images)} {name}" for name, split in self.splits.items())
        cli.say(folder, f"checking {counts} images")
        options = self.options
        return data.check_split_images(self.splits, options.max_bad_fraction, self.bad_images, options.workers)

    def build(self, weights: Path | None, encoder_config: dict[str, Any] | None = None) -> nn.Module:
        name = self.previous.get("--engine", self.engine) if self.engine == "auto" else self.engine
        self.engine = choose_engine(name, self.recipe)
        if self.options.trains and torch.are_deterministic_algorithms_enabled():
            from torch._dynamo import config as dynamo

            dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
            if self.engine == "detectron2":
                logger.warning(ALL_SAMPLES)
        return build_detector(self.engine, self.recipe, len(self.categories), weights, encoder_config)

    def values(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.recipe)
        return {
            "--engine": self.engine,
            "values": {name: values[name] for name in OPTIONS},
            "recipe_values": {name: value for name, value in values.items() if name not in OPTIONS},
            "config_values": dataclasses.asdict(self.base),
        }

    def train_set(self) -> TrainingImages:
        return TrainingImages(self.splits["train"], self.recipe)

    def collate(self) -> Any:
        return collate

    def data_report(self) -> dict[str, Any]:
        return {name: data.report(split, self.unusable[name]) for name, split in self.splits.items()}

    def measure(self, fabric: Fabric, model: nn.Module, folder: RunFolder, final: bool) -> dict[str, Any] | None:
        start = time.monotonic()
        split = self.splits["val"]
        sizes = [(image.height, image.width) for image in split.images]
        detections: list[dict[str, Any]] = []
        for index, found in detect_all(fabric, model, split.image_list(), sizes, self.recipe, self.options.workers):
            detections += to_coco(split.images[index].id, found, split.categories)
        detections = gather(detections)
        if not folder.is_main:
            return None
        results = coco_ap(split, detections, self.recipe.detections_per_image, self.recipe.masks)
        seconds = time.monotonic() - start
        cli.say(folder, f"evaluated {len(sizes)} images, {len(detections)} detections, in {seconds:.1f} s")
        for kind, values in results.items():
            shown = "  ".join(f"{key} {'-' if value is None else f'{value:.2f}'}" for key, value in values.items())
            cli.say(folder, f"{kind}: {shown}")
        write_json(folder.path / f"detections{self.weights_suffix}{self.results_suffix()}.json", detections)
        return results

    def score(self, entry: dict[str, Any]) -> float:
        return sum(entry[kind]["AP"] or 0.0 for kind in ("bbox", "segm") if kind in entry)

    @property
    def class_names(self) -> list[str]:
        return [name for _, name in self.categories]

    def answer(self, fabric: Fabric, model: Any, image: Image.Image, path: str = "") -> dict[str, Any]:
        found = detect_one(fabric, model, prepare(image, self.recipe), (image.height, image.width))
        if found["masks"] is not None:
            masks = [to_mask(rle, image.height, image.width) for rle in found["masks"]]
            found["masks"] = np.array(masks, bool).reshape(-1, image.height, image.width)
        return found

    def predict(self, fabric: Fabric, model: nn.Module, pictures: Pictures) -> str:
        images, drawn = pictures.images, 0
        workers = self.options.workers
        for index, found in detect_all(fabric, model, images, pictures.sizes, self.recipe, workers, "predict"):
            pictures.save(index, draw(images.read(index), found, self.class_names, DRAWN_SCORE))
            listed = to_coco(index, found, self.categories)
            pictures.found[images.names[index]] = [
                {key: value for key, value in entry.items() if key != "image_id"} for entry in listed
            ]
            drawn += sum(entry["score"] >= DRAWN_SCORE for entry in listed)
        return f"{sum(gather([drawn]))} detections of score {DRAWN_SCORE} or more"

    def graph(self, model: Any) -> Graph:
        if self.engine != "torchvision":
            raise UserError(
                "the run is of the detectron2 engine, whose export is detectron2's own: train with --engine torchvision"
            )
        return graph_of(model.model, self.recipe.masks)

    def graph_size(self) -> tuple[int, int]:
        long = self.recipe.img_size * (1 if self.recipe.augment == "lsj" else self.recipe.max_long_side)
        return self.recipe.img_size, round(long)
