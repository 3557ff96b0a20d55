"""mmseg's view of the checked pairs: `SegPairs`, `SegFolder` (datasets), readers, `SegPack`."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import DATASETS, TRANSFORMS

from pretrain.data.deep_images import range_of_images
from pretrain.data.sources import ImageList
from pretrain.training.global_generators import global_generators
from pretrain.training.loader import sample_rng
from splitmask_backbones.errors import UserError
from tools.segmentation.classes import Classes
from tools.segmentation.labels import read_label, to_training_labels
from tools.segmentation.layout import Split, find_split, make_layout


@DATASETS.register_module()
class SegPairs(BaseSegDataset):
    """The pairs of a checked split.

    Training asks for `dataset[(epoch, index, repeat)]` and gets the same augmented sample every time; evaluation
    asks for `dataset[index]`.
    """

    def __init__(
        self, split: Split, classes: Classes, pipeline: list[dict[str, Any]], seed: int = 0, test_mode: bool = False
    ):
        self.split, self.seed, self.images = split, seed, split.image_list()
        super().__init__(
            metainfo={"classes": classes.names, "palette": classes.palette},
            reduce_zero_label=classes.reduce_zero_label,
            pipeline=pipeline,
            test_mode=test_mode,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Returns one dict a pair, as mmseg's transforms expect it."""
        return [
            {
                "img_path": str(self.split.image_dir / image),
                "seg_map_path": str(self.split.label_dir / label),
                "label_map": None,
                "label_ids": self.split.label_ids,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for image, label in self.split.pairs
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Returns the entry of a pair with its `image`."""
        return {**super().get_data_info(idx), "image": self.images.read(idx)}

    def __getitem__(self, key: int | tuple[int, int, int]) -> Any:
        """Returns the packed sample."""
        if isinstance(key, int):
            return self.prepare_data(key)
        epoch, index, _ = key
        rng = sample_rng(self.seed, epoch, index)  # neither workers nor resuming change a sample
        numpy_seed = rng.integers(0, 2**32, size=4, dtype=np.uint32)
        with global_generators(int(rng.integers(0, 2**63)), numpy_seed):
            return self.prepare_data(index)


@DATASETS.register_module()
class SegFolder(SegPairs):
    """The pairs of a folder, unchecked, for configs of mmengine.

    Args:
        split: "train" or "val".
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        layout: dict[str, Any] | None,
        classes: list[str],
        palette: list[list[int]],
        reduce_zero_label: bool,
        pipeline: list[dict[str, Any]],
        test_mode: bool = False,
    ) -> None:
        found = find_split(Path(data_root), split, make_layout(layout))
        learned = found
        if split != "train":
            with suppress(UserError):  # a test may have no training images at hand
                learned = find_split(Path(data_root), "train", make_layout(layout))
        deep = range_of_images(learned.image_list())  # as tools/train_seg.py: of the training images, for both
        found = replace(found, value_range=None if deep is None else deep.value_range)
        super().__init__(found, Classes(classes, palette, reduce_zero_label), pipeline, test_mode=test_mode)


@TRANSFORMS.register_module()
class SegImage(BaseTransform):
    """From `image` (RGB), or the file `img_path`, which mmseg's inference gives, to `img`, `img_shape`, `ori_shape`.

    `img` is uint8 BGR `(H, W, 3)`: mmseg's colour transforms and its preprocessor expect BGR.

    Args:
        value_range: the values of a file of more than 8 bits that become 0 and 255; None for those of each file. A
            run of mmengine's writes that of its training images into its config.
    """

    def __init__(self, value_range: tuple[float, float] | None = None) -> None:
        self.value_range = None if value_range is None else (value_range[0], value_range[1])

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results with the image."""
        results = dict(results)
        picture = results.pop("image", None) or ImageList(
            Path(), [results["img_path"]], value_range=self.value_range
        ).read(0)
        image = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module()
class SegLabel(BaseTransform):
    """Reads `seg_map_path` as indices: adds `gt_seg_map`, uint8 `(H, W)`. Does nothing where there is no such path.

    In a test pipeline it stands after `Resize`: predictions are scaled back to the label's size, not the reverse.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results with the label map."""
        if "seg_map_path" not in results:
            return results
        labels = to_training_labels(
            read_label(results["seg_map_path"], results.get("label_ids", ())), bool(results["reduce_zero_label"])
        )
        return {**results, "gt_seg_map": labels, "seg_fields": [*results.get("seg_fields", ()), "gt_seg_map"]}


@TRANSFORMS.register_module()
class SegPack(PackSegInputs):
    """mmseg's `PackSegInputs`, which fails on a flipped image of one pixel's width: torch takes no negative strides."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns `inputs` and `data_samples`."""
        results = dict(results)
        for key in ("img", "gt_seg_map"):
            if key in results:
                results[key] = np.array(results[key], order="C")
        return super().transform(results)
