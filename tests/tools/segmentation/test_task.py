"""A config and a segmentor: weights, pixels, labels and values are those that were asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("splitmask_backbones.mmseg", reason="the extra 'segmentation' is not installed")

from mmengine.dataset import pseudo_collate

from pretrain.data.pixel_norm import PixelNorm
from pretrain.training.distributed import make_fabric
from splitmask_backbones import create_encoder, save_encoder
from tests.helpers.pixels import seen_by
from tests.helpers.seg_data import make_data
from tests.helpers.seg_tool import TINY
from tools.finetuning.options import FinetuneOptions
from tools.segmentation.config import config_path
from tools.segmentation.recipe import SegRecipe
from tools.segmentation.task import SegmentationTask


def made(
    folder: Path,
    weights: Path | None = None,
    given: Sequence[str] = (),
    values: Sequence[int] = (0, 1, 2),
    classes: str = "abc",
    size: tuple[int, int] = (80, 72),
) -> tuple[SegmentationTask, Any]:
    """Returns a task of the demo's config with a tiny encoder, on noise of `size` (width, height), and its model."""
    root = make_data(folder / "data", count=2, size=size, values=values)
    (root / "classes.json").write_text(json.dumps(list(classes)))
    options = FinetuneOptions(
        output=folder,
        resume=False,
        workers=0,
        save_every=1,
        log_every=1,
        max_bad_fraction=0.0,
        weights=weights,
        eval_only=False,
        predict=None,
        best=False,
        trains=True,
    )
    base = SegRecipe.load(config_path("demo"))
    task = SegmentationTask(options, "demo", base, {"overrides": [*TINY, *given], "img_size": 64}, root, None)
    task.recipe = base.override(task.given)
    task.find_data(("train", "val"))
    task.check_data(SimpleNamespace(path=folder, is_main=True, finished=False), make_fabric())  # type: ignore[arg-type]
    return task, task.build(weights)


def test_the_encoder_is_the_files(tmp_path: Path) -> None:
    encoder = create_encoder("vit_tiny", embed_dim=24, depth=2, img_size=64)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    _, model = made(tmp_path, tmp_path / "encoder.safetensors")
    state = encoder.state_dict()
    assert len(model.encoder.state_dict()) > 20
    assert all(torch.equal(value, state[name]) for name, value in model.encoder.state_dict().items())
    assert model.encoder.load_report.loaded


def test_the_encoder_sees_the_pixels_of_its_pre_training(tmp_path: Path) -> None:
    task, model = made(tmp_path, size=(96, 64))
    dataset = task._dataset("val", task._test_pipeline(False))
    path = task.splits["val"].image_dir / task.splits["val"].pairs[0][0]
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    seen = seen_by(model.encoder, lambda: model.eval().predict(pseudo_collate([dataset[0]])))
    torch.testing.assert_close(seen, PixelNorm()(image[None]), atol=1e-4, rtol=0)
    sample = task.train_set()[0, 0, 0]
    crop = sample["inputs"].flip(0)  # mmseg's order is BGR
    seen = seen_by(model.encoder, lambda: model.train()(pseudo_collate([sample, sample])))
    torch.testing.assert_close(seen[0], PixelNorm()(crop[None])[0], atol=1e-4, rtol=0)


def test_labels_are_class_numbers_and_crops_differ_by_epoch_and_seed(tmp_path: Path) -> None:
    task, _ = made(tmp_path, given=["layout.label_ids=[0,7]"], values=(0, 7), classes="ab", size=(200, 200))
    dataset = task.train_set()
    samples = [dataset[0, 0, 0], dataset[1, 0, 0], dataset[0, 0, 0]]
    assert set(samples[0]["data_samples"].gt_sem_seg.data.unique().tolist()) == {0, 1}
    assert torch.equal(samples[0]["inputs"], samples[2]["inputs"])
    assert not torch.equal(samples[0]["inputs"], samples[1]["inputs"])
    dataset.seed += 1
    assert not torch.equal(samples[0]["inputs"], dataset[0, 0, 0]["inputs"])


def test_padding_is_no_class(tmp_path: Path) -> None:
    task, model = made(tmp_path, size=(30, 20))
    batch = model.model.data_preprocessor(pseudo_collate([task.train_set()[0, 0, 0]]), True)
    labels = batch["data_samples"][0].gt_sem_seg.data[0]
    assert labels.shape == (64, 64) and (labels[:20, :30] != 255).all()
    assert (labels[20:] == 255).all() and (labels[:, 30:] == 255).all()


def test_values_reach_model_and_loop(tmp_path: Path) -> None:
    task, model = made(tmp_path, given=["class_weights=median_frequency", "optim_wrapper.clip_grad.max_norm=0.7"])
    loss = model.model.decode_head.loss_decode
    assert type(loss).__name__ == "ClassWeightedCrossEntropy"
    labels = [np.asarray(Image.open(path)) for path in (tmp_path / "data/annotations/train").iterdir()]
    shares = np.bincount(np.concatenate(labels).ravel(), minlength=3)[:3] / np.concatenate(labels).size
    assert loss.class_weight == pytest.approx(np.median(shares) / shares)  # every image holds all three
    crops = [step for step in task.config["train_pipeline"] if step["type"] == "RandomCrop"]
    assert [step["crop_size"] for step in crops] == [(64, 64)]
    assert task.recipe.clip_grad == 0.7


def test_labels_are_numbers_where_a_head_has_one_map() -> None:
    found = SimpleNamespace(pred_sem_seg=SimpleNamespace(data=torch.tensor([[[0.0, 1.0]]])))
    task: Any = SimpleNamespace(recipe=SimpleNamespace(use_tta=False), _transforms=lambda sample: sample)
    model = SimpleNamespace(predict=lambda batch: [found])
    labels = SegmentationTask.answer(task, make_fabric(device="cpu"), model, Image.new("RGB", (2, 1)))["labels"]
    assert labels.dtype == np.int64 and labels.tolist() == [[0, 1]]
