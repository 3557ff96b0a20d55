"""What `tools/train_seg.py` brings to the skeleton of the fine-tuning tools."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch import nn

from pretrain.training.distributed import make_fabric
from pretrain.training.progress import tracked
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.errors import UserError
from splitmask_backbones.mmseg_slide import COARSEST
from tools import cli
from tools.finetuning.copies import warn_about_copies
from tools.finetuning.graph import Graph
from tools.finetuning.labels import labelled
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.pictures import Pictures
from tools.finetuning.task import Task
from tools.segmentation.check import check_splits, without
from tools.segmentation.class_weights import class_weights
from tools.segmentation.classes import Classes, find_classes
from tools.segmentation.config import derive
from tools.segmentation.dataset import SegPairs
from tools.segmentation.draw import draw_overlay
from tools.segmentation.evaluate import evaluate
from tools.segmentation.graph import graph_of
from tools.segmentation.layout import Split, find_split, is_ade20k, make_layout
from tools.segmentation.model import Segmentor, build_optimizer, build_segmentor, config_errors, import_modules
from tools.segmentation.recipe import OF_DATA, SegRecipe, tuple_keys
from tools.segmentation.tta import MeanOfViews, tta_pipeline

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


def _check_labels(samples: Any) -> None:
    """Raises ValueError where a test pipeline resizes labels: predictions are scaled to the size of the image."""
    for sample in samples if isinstance(samples, list) else [samples]:
        found = tuple(sample.gt_sem_seg.data.shape[-2:]) if "gt_sem_seg" in sample else sample.ori_shape
        if found != tuple(sample.ori_shape):
            raise UserError(
                f"test_pipeline makes labels of {found[0]} x {found[1]} pixels for an image of {sample.ori_shape[0]} x "
                f"{sample.ori_shape[1]}: let SegLabel stand behind what resizes"
            )


class SegmentationTask(Task):
    """A segmentor of mmseg on pairs of images and labels.

    Args:
        options, name, base, given: as for every task; the base is a `SegRecipe`.
        root: `--data`.
        classes_file: `--classes`.
    """

    command, noun = "train_seg", "segmentor"
    remedy = "use the config and the classes that it was trained with"
    recipe: SegRecipe

    def __init__(
        self,
        options: FinetuneOptions,
        name: str,
        base: SegRecipe,
        given: dict[str, Any],
        root: Path | None,
        classes_file: str | None,
    ) -> None:
        super().__init__(options, name, base, given)
        self.root, self.classes_file = root, classes_file
        self.needed: tuple[str, ...] = ()
        self.counts: dict[str, dict[str, Any]] = {}

    def find_data(self, needed: tuple[str, ...]) -> None:
        self.needed = needed

    def recorded(self, config: dict[str, Any]) -> SegRecipe:
        return SegRecipe.recorded(config)

    def fabric(self) -> Fabric:
        recipe, options = self.recipe, self.options
        return make_fabric(recipe.precision, options.device, recipe.find_unused_parameters, self.is_deterministic)

    @cached_property
    def classes(self) -> Classes:
        """Of the training data, or of the run that is used or resumed: there what is not named again stays."""
        config = self.recipe.config
        named = self.classes_file is not None or config["classes"] is not None
        if self.options.trains and (named or not self.previous):
            assert self.root is not None
            kept = {} if not self.previous else {"reduce_zero_label": self.previous["data"]["reduce_zero_label"]}
            written = {name: config[name] for name in OF_DATA if config[name] is not None}
            return find_classes(self.root, self.classes_file, config | kept | written, is_ade20k(self.root))
        data, shifted = self.previous["data"], config["reduce_zero_label"]
        if shifted is not None and bool(shifted) != data["reduce_zero_label"]:
            raise UserError(
                f"reduce_zero_label was {data['reduce_zero_label']} and is now {shifted}: use the old value, or start "
                "anew in another --output"
            )
        own = Classes(data["classes"], self.previous["free"]["palette"], data["reduce_zero_label"])
        if self.classes_file is not None:
            given = find_classes(self.root, self.classes_file, self.recipe.config, False)
            if given.names != own.names:
                raise UserError(
                    f"--classes {self.classes_file} names {', '.join(given.names[:5])}, and the run was trained on "
                    f"{', '.join(own.names[:5])}: omit it, the run knows its classes"
                )
        return own

    def check_data(self, folder: RunFolder, fabric: Fabric) -> dict[str, Any]:
        assert self.root is not None
        layout, classes = make_layout(self.recipe.layout), self.classes
        splits: dict[str, Split] = {name: find_split(self.root, name, layout) for name in self.needed}
        if layout.label_ids and len(layout.label_ids) != len(classes.names):
            raise UserError(
                f"layout.label_ids holds {len(layout.label_ids)} numbers for {len(classes.names)} classes: give one "
                "per class"
            )
        if layout.label_ids and classes.reduce_zero_label:
            raise UserError(
                "layout.label_ids and reduce_zero_label both say which number is a class: leave one of them out"
            )
        for name, split in splits.items():
            some = labelled(name, split.pairs, self.recipe.labels, self.recipe.seed)
            splits[name] = replace(split, pairs=self.used(name, some))
        identity: dict[str, Any] = {name: split.fingerprint() for name, split in splits.items()}
        identity |= self.choose_range(next(iter(splits.values())).image_list(), fabric)
        splits = {name: replace(split, value_range=self.value_range) for name, split in splits.items()}
        identity |= {"classes": classes.names, "reduce_zero_label": classes.reduce_zero_label}
        before = self.previous.get("data", {})
        known = before.get("unusable", {}) if all(before.get(name) == identity[name] for name in splits) else {}
        is_resumed = self.options.trains and bool(known)
        if is_resumed:
            splits = without(splits, known)
        checked: Any = (splits, {})
        if folder.is_main and not (self.options.trains and folder.finished):
            if not known:
                warn_about_copies({name: split.image_list() for name, split in splits.items()})
            limit = self.options.max_bad_fraction
            checked = check_splits(splits, classes, limit, self.bad_images, is_resumed)
        self.splits, self.counts = fabric.broadcast(checked)
        kept = {name: {image for image, _ in split.pairs} for name, split in self.splits.items()}
        left_out = {n: [image for image, _ in splits[n].pairs if image not in kept[n]] for n in splits}
        identity["unusable"] = known or left_out
        return identity

    def build(self, weights: Path | None, encoder_config: dict[str, Any] | None = None) -> nn.Module:
        config = self.recipe.config
        import_modules(config)
        weights_of_classes = None
        if config["class_weights"] not in (None, "none") and "train" in self.counts:
            weights_of_classes = class_weights(config["class_weights"], self.counts["train"])
        backbone = config["model"]["backbone"]
        if weights is not None:
            backbone = backbone | {"init_cfg": {"type": "Pretrained", "checkpoint": str(weights)}}
        if encoder_config is not None:
            kept = {key: backbone[key] for key in ("type", "pyramid", "out_channels", "norm") if key in backbone}
            # The run's arguments win over all of the name's.
            backbone = kept | {"encoder": "vit_tiny", **encoder_config}
        config = config | {"model": config["model"] | {"backbone": backbone}}
        if self.options.trains and config["img_size"] % COARSEST:
            logger.warning(
                "--img-size %d is no multiple of %d: the heads lay maps that reach out of such crops over those that "
                "do not, up to %d pixels apart: %d fits",
                config["img_size"],
                COARSEST,
                -config["img_size"] % COARSEST,
                max(COARSEST, round(config["img_size"] / COARSEST) * COARSEST),
            )
        self.config = derive(config, len(self.classes.names), weights_of_classes)
        return build_segmentor(self.config["model"])

    def values(self) -> dict[str, Any]:
        return self.recipe.values() | {"config_values": self.base.values()["recipe_values"]}

    def free(self) -> dict[str, Any]:
        names = ("eval_every", "visualizer")
        return {
            "palette": self.classes.palette,
            "data": str(self.root),
            "tuples": tuple_keys(self.recipe.values()["recipe_values"]),
            **{name: self.recipe.config[name] for name in names},
        }

    def _dataset(self, split: str, pipeline: list[dict[str, Any]]) -> SegPairs:
        with config_errors():
            dataset = SegPairs(self.splits[split], self.classes, pipeline, self.recipe.seed, split == "val")
            sample = dataset[0, 0, 0]  # a pipeline that fails must do so now, not at the evaluation after the training
        if split == "val":
            _check_labels(sample["data_samples"])
        return dataset

    def train_set(self) -> SegPairs:
        self._dataset("val", self._test_pipeline(self.recipe.use_tta))
        return self._dataset("train", self.config["train_pipeline"])

    def collate(self) -> Any:
        return pseudo_collate

    def optimizer(self, model: nn.Module, device: torch.device) -> Any:
        assert isinstance(model, Segmentor)
        wrapper = self.config["optim_wrapper"]
        named = wrapper.get("optimizer", {})
        others = named.get("foreach") or named.get("differentiable")  # which torch does not take beside it
        if device.type == "cuda" and named.get("type") == "AdamW" and not others:  # as in pretrain.training.optimizer
            wrapper = {**wrapper, "optimizer": {"fused": True, **named}}
        return build_optimizer(model, wrapper)

    def data_report(self) -> dict[str, Any]:
        for name, counts in self.counts.items():
            absent = [title for title, count in counts["classes"].items() if not count["pixels"]]
            bad = f", {counts['unreadable_images']} unreadable left out" if counts["unreadable_images"] else ""
            num_classes = len(counts["classes"])
            logger.info(
                "%s: %d images%s, %d of %d classes", name, counts["images"], bad, num_classes - len(absent), num_classes
            )
        return self.counts

    def _test_pipeline(self, use_tta: bool) -> list[dict[str, Any]]:
        pipeline = self.config["test_pipeline"]
        return tta_pipeline(pipeline, **self.config["tta"]) if use_tta else pipeline

    @property
    def final_differs(self) -> bool:
        return self.recipe.use_tta

    def results_suffix(self) -> str:
        own = self.previous["values"]["tta"]
        scales = "" if self.recipe.use_tta == own else "_tta" if self.recipe.use_tta else "_single"
        return scales + super().results_suffix()

    def measure(self, fabric: Fabric, model: nn.Module, folder: RunFolder, final: bool) -> dict[str, Any] | None:
        assert isinstance(model, Segmentor)
        use_tta = final and self.recipe.use_tta
        dataset = self._dataset("val", self._test_pipeline(use_tta))
        results = evaluate(fabric, model, dataset, use_tta, self.options.workers)
        if final or not self.final_differs:
            for name, value in results["per_class"].items():
                cli.say(folder, f"  {name:24} {'undefined' if value is None else f'{value:6.2f}'}")
        shown = (f"{n} {'undefined' if results[n] is None else f'{results[n]:.2f}'}" for n in ("mIoU", "mAcc", "aAcc"))
        cli.say(folder, "  ".join(shown))
        return results

    def score(self, entry: dict[str, Any]) -> float:
        return entry["mIoU"] or 0.0

    @property
    def class_names(self) -> list[str]:
        return list(self.classes.names)

    @cached_property
    def _transforms(self) -> Compose:
        pipeline = [step for step in self.config["test_pipeline"] if step["type"] != "SegLabel"]
        return Compose(tta_pipeline(pipeline, **self.config["tta"]) if self.recipe.use_tta else pipeline)

    @torch.no_grad()
    def answer(self, fabric: Fabric, model: Any, image: Image.Image, path: str = "") -> dict[str, Any]:
        predict = MeanOfViews(model.model).test_step if self.recipe.use_tta else model.predict
        sample = predict(pseudo_collate([self._transforms({"img_path": path, "image": image})]))[0]
        # A head of one map gives floats.
        return {"labels": sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64, copy=False)}

    def predict(self, fabric: Fabric, model: nn.Module, pictures: Pictures) -> str:
        own = range(fabric.global_rank, len(pictures.images), fabric.world_size)
        for index in tracked(own, len(own), "predict", fabric.is_global_zero):
            path, image = pictures.images.path(pictures.images.names[index]), pictures.images.read(index)
            labels = self.answer(fabric, model, image, str(path))["labels"]
            pictures.save(index, draw_overlay(image, labels, self.classes))
        return "the classes over them"

    def graph(self, model: Any) -> Graph:
        return graph_of(model.model)

    def graph_size(self) -> tuple[int, int]:
        if self.config["model"]["test_cfg"].get("mode") != "slide":
            raise UserError("--img-size H,W is needed: the run evaluates whole images, of the size that they have")
        return self.recipe.config["img_size"], self.recipe.config["img_size"]  # of a window
