"""What `tools/train_cls.py` brings to the skeleton of the fine-tuning tools."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from pretrain.training.run_folder import RunFolder
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS, encoder_name
from tools import cli
from tools.classification import data
from tools.classification.data import DataOptions
from tools.classification.dataset import TrainingCrops
from tools.classification.draw import draw
from tools.classification.evaluate import evaluate
from tools.classification.graph import graph_of
from tools.classification.model import Classifier, build_classifier
from tools.classification.recipes import DOMAINS, ClsRecipe
from tools.finetuning.graph import Graph
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.pictures import Pictures
from tools.finetuning.task import Task
from tools.frozen.center_crop import CenterCrop, center_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NUM_SHOWN = 5


class ClassificationTask(Task):
    """A classifier on labelled images.

    Args:
        options, name, base, given: as for every task; the base is a `ClsRecipe`.
        places: what the command line says about the data.
    """

    command, noun, name_key = "train_cls", "classifier", "recipe"
    remedy = "omit options that change the model"
    keeps_encoder = True

    def __init__(
        self, options: FinetuneOptions, name: str, base: ClsRecipe, given: dict[str, Any], places: DataOptions
    ) -> None:
        super().__init__(options, name, base, given)
        self.places = places
        self.images: data.LabelledData

    @property
    def classes(self) -> list[str]:
        """Names: of the training images, or of the run that is used."""
        return self.images.classes if self.options.trains else self.previous["data"]["classes"]

    def find_data(self, needed: tuple[str, ...]) -> None:
        name, known = self.name, None
        if "train" not in needed:  # a run that is used
            name, own = self.previous["recipe"], self.previous["data"]
            known = list(zip(own["labels"], own["classes"], strict=True))
        self.images = data.open_data(self.places, name if name in DOMAINS else None, needed, known)

    def recorded(self, config: dict[str, Any]) -> ClsRecipe:
        values = config["values"]
        return ClsRecipe(**{name: value for name, value in values.items() if name != "model" or value in ENCODERS})

    def fabric(self) -> Fabric:
        """Returns device, precision and processes.

        Raises:
            ValueError: mixing leaves an image of a process without a partner.
        """
        fabric, recipe = super().fabric(), self.recipe
        local, rest = divmod(recipe.batch_size, fabric.world_size * recipe.accumulate)
        if self.options.trains and recipe.mixes and local % 2 and not rest:
            raise UserError(
                f"mixup and cutmix pair the images of a process, and --batch-size {recipe.batch_size} gives each of "
                f"the {fabric.world_size} processes {local}: use a --batch-size with an even share, or --mixup 0 "
                "--cutmix 0"
            )
        return fabric

    def check_data(self, folder: RunFolder, fabric: Fabric) -> dict[str, Any]:
        for name, split in self.images.splits.items():
            self.images.splits[name] = split.of(self.used(name, split.images.names))
        chosen = self.choose_range(next(iter(self.images.splits.values())).images, fabric)
        data.set_range(self.images, self.value_range)
        before = self.previous.get("data", {})
        is_known = self.options.trains or before.get("val") == self.images.splits["val"].fingerprint()
        identity = data.identity_of(
            self.images, before if is_known else None, folder, fabric, self.options.max_bad_fraction, self.bad_images,
            self.options.workers,
        )  # fmt: skip
        data.without_unreadable(self.images, identity["unreadable"])
        return identity | chosen

    def build(self, weights: Path | None, encoder_config: dict[str, Any] | None = None) -> nn.Module:
        model = build_classifier(self.recipe, len(self.classes), weights, encoder_config, self.given.get("model"))
        self._model_name = encoder_name(model.encoder.config) or "custom"
        return model

    def values(self) -> dict[str, Any]:
        return {"values": dataclasses.asdict(self.recipe) | {"model": self._model_name}}

    def free(self) -> dict[str, Any]:
        return {"data": str(self.places.data)}

    def train_set(self) -> TrainingCrops:
        return TrainingCrops(self.images.splits["train"], self.recipe)

    def repeats(self) -> int:
        return self.recipe.repeats

    def data_report(self) -> dict[str, Any]:
        data.warn(self.images)
        return data.report(self.images)

    @property
    def _crop(self) -> CenterCrop:
        return CenterCrop(self.recipe.img_size, self.recipe.test_crop)

    def measure(self, fabric: Fabric, model: nn.Module, folder: RunFolder, final: bool) -> dict[str, Any] | None:
        assert isinstance(model, Classifier)
        start = time.monotonic()
        results = evaluate(fabric, model, self.images.splits["val"], self.classes, self._crop, self.options.workers)
        shown = f"top-1 {results['top1']:.2f}  top-5 {results['top5']:.2f}  loss {results['loss']:.4f}"
        cli.say(folder, f"{shown}  ({results['num_images']} images in {time.monotonic() - start:.1f} s)")
        return results

    def score(self, entry: dict[str, Any]) -> float:
        return entry["top1"]

    @property
    def class_names(self) -> list[str]:
        return list(self.classes)

    @torch.no_grad()
    def answer(self, fabric: Fabric, model: Any, image: Image.Image, path: str = "") -> dict[str, Any]:
        scores = model.predict(fabric.to_device(self._crop(image)[None])).softmax(dim=1)[0]
        return {"scores": scores.cpu().numpy()}

    @torch.no_grad()
    def predict(self, fabric: Fabric, model: nn.Module, pictures: Pictures) -> str:
        assert isinstance(model, Classifier)
        images = pictures.images
        for indices, crops in center_batches(fabric, images, self._crop, self.options.workers, "predict"):
            best = model.predict(crops).softmax(dim=1).topk(min(NUM_SHOWN, len(self.classes)), dim=1)
            rows = (rows.tolist() for rows in (indices, best.values, best.indices))
            for index, scores, labels in zip(*rows, strict=True):
                listed = [{"class": self.classes[i], "score": score} for i, score in zip(labels, scores, strict=True)]
                pictures.found[images.names[index]] = listed
                pictures.save(index, draw(images.read(index), listed))
        return "their likeliest classes"

    def graph(self, model: Any) -> Graph:
        return graph_of(model)

    def graph_size(self) -> tuple[int, int]:
        return self.recipe.img_size, self.recipe.img_size

    def prepared(self) -> dict[str, Any]:
        return super().prepared() | {"test_crop": self.recipe.test_crop}
