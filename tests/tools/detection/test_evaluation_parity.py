"""The evaluation as a whole, from image files to 12 numbers: against detectron2's own, and against pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from det_configs.common.recipe import DetRecipe
from pretrain.training.distributed import make_fabric
from tests.helpers.det_real import NearTruth, write_real_root
from tools.detection.config import load_config
from tools.detection.dataset import TrainingImages, collate
from tools.detection.detector import Detector
from tools.detection.detectron2_engine import Detectron2Detector
from tools.detection.engines import build_detector
from tools.detection.splits import read_splits
from tools.detection.task import DetectionTask
from tools.detection.torchvision_engine import TorchvisionDetector
from tools.finetuning.options import FinetuneOptions

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Results = dict[str, dict[str, float | None]]

RECIPE = DetRecipe(
    encoder="vit_tiny", out_channels=32, drop_path=0.0, box_head_width=128, mask_head_width=32, mask_head_convs=1,
    rpn_pre_nms_train=200, rpn_post_nms_train=100, rpn_pre_nms_test=200, rpn_post_nms_test=100, rpn_batch=64,
    rois_per_image=32, roi_positive_fraction=0.5, img_size=96, scale_range=(1.0, 1.0), flip=0.0,
    anchor_sizes=(16, 32, 64, 96, 128), epochs=None, steps=120,
)  # fmt: skip
ENCODER = {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 96, "out_indices": (1,), "final_norm": False}


def task_of(root: Path, recipe: DetRecipe, engine: str) -> DetectionTask:
    options = FinetuneOptions(root / "run", False, 0, 1, 1, 0.0, None, False, None, False, True)
    task = DetectionTask(options, "x", load_config("demo"), {}, {"data": str(root)}, engine)
    task.recipe = recipe
    task.find_data(("train", "val"))
    task.splits = read_splits(task.locations)
    return task


def ours(task: DetectionTask, detector: Detector, root: Path) -> tuple[Results, list[dict[str, Any]]]:
    """Returns what `train_det.py` writes: the results, and the detections they come from."""
    fabric = make_fabric()
    folder: Any = SimpleNamespace(path=root, is_main=True)
    results = task.measure(fabric, fabric.to_device(detector), folder, final=True)
    assert results is not None
    return results, json.loads((root / "detections.json").read_text())


def assert_same(found: Results, expected: Results) -> None:
    for kind in ("bbox", "segm"):
        for key in KEYS:
            value = expected[kind][key]
            assert value is not None and value > 0.5, (kind, key, value)  # otherwise it would say nothing
            assert found[kind][key] == pytest.approx(value, abs=1e-3), (kind, key)


def learned_by_heart(task: DetectionTask, engine: str) -> Detector:
    """Returns a detector that was trained on the few images of its training split."""
    data = TrainingImages(task.splits["train"], task.recipe)
    batch = collate([data[(0, index, 0)] for index in range(len(data))])
    torch.manual_seed(0)
    detector = build_detector(engine, task.recipe, 80, encoder_config=ENCODER).train()
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.0)
    steps = task.recipe.steps
    assert steps is not None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        detector(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    return detector


def of_detectron2(root: Path, recipe: DetRecipe, model: Any) -> tuple[Results, list[dict[str, Any]]]:
    """Returns results and detections of detectron2: its loader as our LazyConfigs set it, its inference, its metric."""
    from detectron2.config import instantiate
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset

    from det_configs.common.lazy import lazy_data

    name = f"{root.name}_{recipe.augment}"
    register_coco_instances(name, {}, str(root / "annotations/instances_val.json"), str(root / "val"))
    try:
        loader = lazy_data(recipe)
        loader.test.dataset.names, loader.test.num_workers = name, 0
        evaluator = COCOEvaluator(name, output_dir=str(root))
        results = inference_on_dataset(model, instantiate(loader.test), evaluator)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return dict(results), json.loads((root / "coco_instances_results.json").read_text())


def of_pycocotools(root: Path, detections: list[dict[str, Any]]) -> Results:
    """Returns the AP of detections against the annotation file as it is."""
    results: Results = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations/instances_val.json"))
        for kind, other in (("bbox", "segmentation"), ("segm", "bbox")):
            listed = [{key: value for key, value in entry.items() if key != other} for entry in detections]
            evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(listed)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            results[kind] = dict(zip(KEYS, (100 * float(value) for value in evaluation.stats[:6]), strict=True))
    return results


def assert_same_detections(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Every detection of one list is in the other: its box to a hundredth of a pixel, its mask to the pixel."""

    def in_order(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(listed, key=lambda d: (d["image_id"], round(d["score"], 5), d["category_id"], d["bbox"]))

    assert len(found) == len(expected) > 20
    for one, other in zip(in_order(found), in_order(expected), strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
        masks = [coco_mask.decode(d["segmentation"]).astype(int) for d in (one, other)]
        assert np.abs(masks[0] - masks[1]).sum() <= 2


class Stub(nn.Module):
    """A torchvision detector that answers as it is told."""

    def __init__(self, answer: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        boxes, labels, scores, masks = self.answer(images[0] * 255)
        return [{"boxes": boxes, "labels": labels + 1, "scores": scores, "masks": masks}]


def detectron2_stub(answer: Callable[[Tensor], tuple[Tensor, ...]]) -> Any:
    """Returns detectron2's `GeneralizedRCNN` with RoI heads that answer as they are told."""
    from detectron2.modeling import Backbone
    from detectron2.modeling.meta_arch import GeneralizedRCNN
    from detectron2.structures import Boxes, Instances

    class NoBackbone(Backbone):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {}

    class NoProposals(nn.Module):
        def forward(self, images: Any, *features: Any) -> tuple[list[Any], dict[str, Tensor]]:
            return [None] * len(images), {}

    class Told(nn.Module):
        def forward(self, images: Any, *rest: Any) -> tuple[list[Any], dict[str, Tensor]]:
            found = []
            for image in images:
                boxes, labels, scores, masks = answer(image)
                fields = {"pred_boxes": Boxes(boxes), "pred_classes": labels, "scores": scores, "pred_masks": masks}
                found.append(Instances((image.shape[-2], image.shape[-1]), **fields))
            return found, {}

    return GeneralizedRCNN(
        backbone=NoBackbone(), proposal_generator=NoProposals(), roi_heads=Told(),
        pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3, input_format="RGB",
    )  # fmt: skip


def by_hand(task: DetectionTask, root: Path, model: nn.Module) -> list[dict[str, Any]]:
    """Returns the detections of a torchvision model, written down without the project's code."""
    content = json.loads((root / "annotations/instances_val.json").read_text())
    ids = sorted(category["id"] for category in content["categories"])
    side, detections = task.recipe.img_size, []
    for entry in content["images"]:
        picture = Image.open(root / "val" / entry["file_name"]).convert("RGB")
        scale = side / min(picture.size)
        if max(picture.size) * scale > side * task.recipe.max_long_side:
            scale = side * task.recipe.max_long_side / max(picture.size)
        resized = picture.resize([int(length * scale + 0.5) for length in picture.size], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            found = {key: value.double().numpy() for key, value in model.eval()([pixels])[0].items()}
        for box, label, score, mask in zip(*(found[k] for k in ("boxes", "labels", "scores", "masks")), strict=True):
            x1, y1, x2, y2 = box * np.tile(np.divide(picture.size, resized.size), 2)
            if x2 <= x1 or y2 <= y1:
                continue
            detections.append(
                {
                    "image_id": entry["id"],
                    "category_id": ids[int(label) - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                    "segmentation": pasted(mask[0], (x1, y1, x2, y2), picture.size),
                }
            )
    return detections


def pasted(mask: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> dict[str, Any]:
    """Returns the RLE of a mask's probabilities, bilinear at every pixel's centre; 0 beyond the mask."""
    padded, (width, height) = np.pad(mask, 1), size

    def along(length: int, low: float, high: float) -> np.ndarray:
        """Returns the weights `(length, cells)` of the padded mask's cells."""
        place = (np.arange(length) + 0.5 - low) / (high - low) * len(mask) + 0.5
        return np.clip(1 - np.abs(place[:, None] - np.arange(len(padded))), 0, None)

    value = along(height, box[1], box[3]) @ padded @ along(width, box[0], box[2]).T
    rle = coco_mask.encode(np.asfortranarray((value >= 0.5).astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def check_torchvision(task: DetectionTask, root: Path, detector: Detector) -> None:
    results, detections = ours(task, detector, root)
    dumped = by_hand(task, root, detector.model.cpu())
    assert_same_detections(detections, dumped)
    assert_same(results, of_pycocotools(root, dumped))


def check_detectron2(task: DetectionTask, root: Path, detector: Detector) -> None:
    results, detections = ours(task, detector, root)
    expected, theirs = of_detectron2(root, task.recipe, detector.model)
    assert_same_detections(detections, theirs)
    assert_same(results, expected)


def test_torchvisions_answers_are_measured_as_by_pycocotools(shared_data: Path, tmp_path: Path) -> None:
    root = write_real_root(shared_data, tmp_path / "root", 1, 8)
    task = task_of(root, DetRecipe(img_size=333), "torchvision")
    check_torchvision(task, root, TorchvisionDetector(Stub(NearTruth(task.splits["val"]))))


@pytest.mark.detectron2
@pytest.mark.parametrize("augment", ["multiscale", "lsj"])
def test_detectron2s_answers_are_measured_as_by_itself(shared_data: Path, tmp_path: Path, augment: str) -> None:
    root = write_real_root(shared_data, tmp_path / "root", 1, 8)
    task = task_of(root, DetRecipe(img_size=333, augment=augment), "detectron2")
    check_detectron2(task, root, Detectron2Detector(detectron2_stub(NearTruth(task.splits["val"]))))


@pytest.mark.slow
def test_a_trained_torchvision_detector_is_measured_as_by_pycocotools(shared_data: Path, tmp_path: Path) -> None:
    root = write_real_root(shared_data, tmp_path / "root", 3, 3)
    task = task_of(root, RECIPE, "torchvision")
    check_torchvision(task, root, learned_by_heart(task, "torchvision"))


@pytest.mark.slow
@pytest.mark.detectron2
def test_a_trained_detectron2_detector_is_measured_as_by_itself(shared_data: Path, tmp_path: Path) -> None:
    root = write_real_root(shared_data, tmp_path / "root", 3, 3)
    task = task_of(root, RECIPE, "detectron2")
    check_detectron2(task, root, learned_by_heart(task, "detectron2"))
