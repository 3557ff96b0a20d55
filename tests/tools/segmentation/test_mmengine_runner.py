"""The configs in mmseg's own tools: its runner, two iterations, an evaluation, a resume, and tools/test.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch import set_torchrun
from tests.helpers.paths import ROOT
from tests.helpers.seg_data import make_data

pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
pytest.importorskip("splitmask_backbones.mmseg")  # before any other import of mmseg: it puts the stub in place

import mmseg
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner
from PIL import Image

from splitmask_backbones.pyramid import ResampledTaps
from tools.segmentation.check import check_splits
from tools.segmentation.class_weights import class_weights
from tools.segmentation.classes import find_classes
from tools.segmentation.config import load_config
from tools.segmentation.layout import find_split
from tools.segmentation.mmengine_runner import SplitMaskRunner, _completed, _keep_range, mmengine_values
from tools.segmentation.recipe import SegRecipe

TINY = [
    "model.backbone.embed_dim=24",
    "model.backbone.depth=2",
    "model.backbone.out_channels=8",
    "model.decode_head.channels=8",
    "img_size=64",
    "steps=2",
    "batch_size=2",
    "log_every=1",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = make_data(tmp_path / "data", count=4, size=(80, 72))
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    return root


def of_mmseg(tool: str, *words: str) -> str:
    script = Path(mmseg.__file__).parent / ".mim" / "tools" / tool
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), "seg_configs/demo.py", *words],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_mmsegs_train_py_and_test_py_run_a_delta_file(data: Path, tmp_path: Path) -> None:
    options = ["--work-dir", str(tmp_path / "work"), "--cfg-options", f"data_root={data}", *TINY]
    said = of_mmseg("train.py", *options)
    assert re.search(r"Iter\(train\) \[2/2\].* loss: [0-9.]+", said), said[-3000:]
    assert (found := re.search(r"Iter\(val\) \[4/4\].* mIoU: ([0-9.]+)", said)), said[-3000:]
    assert (tmp_path / "work" / "iter_2.pth").exists()
    said = of_mmseg("test.py", str(tmp_path / "work" / "iter_2.pth"), *options)
    assert f"mIoU: {found[1]} " in said, "the weights are those that were trained"
    said = of_mmseg("train.py", "--resume", *options, "steps=3")
    assert "resumed epoch: 0, iter: 2" in said and "Iter(train) [3/3]" in said


def test_a_plain_runner_leaves_its_own_configs_alone(data: Path, tmp_path: Path) -> None:
    config = Config.fromfile(str(ROOT / "seg_configs" / "demo.py"))
    options = dict(text.split("=") for text in TINY if text.startswith("model."))
    config.merge_from_dict({key: int(value) for key, value in options.items()} | {"work_dir": str(tmp_path / "work")})
    config.merge_from_dict({"data_root": str(data), "img_size": 64, "steps": 2, "batch_size": 2})
    assert type(Runner.from_cfg(config)) is SplitMaskRunner
    plain = Config({"model": config.model, "default_scope": "mmseg", "work_dir": str(tmp_path / "plain")})
    assert type(Runner.from_cfg(plain)) is Runner


def test_the_runner_builds_and_trains_a_row_of_the_ade20k_table(data: Path, tmp_path: Path) -> None:
    config = Config.fromfile(str(ROOT / "seg_configs" / "ade20k_160k_vit_base_splitmask_ade20k.py"))
    backbone = {"encoder": "vit_tiny", "embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 64}
    head = {"channels": 8}
    config.merge_from_dict(
        {
            "model": {"backbone": backbone, "decode_head": head, "auxiliary_head": head},
            "data_root": str(data), "work_dir": str(tmp_path / "work"), "eval_every": 5,
            "img_size": 64, "steps": 1, "batch_size": 2, "log_every": 1,
        }
    )  # fmt: skip
    config.merge_from_dict({"train_dataloader.num_workers": 0, "train_dataloader.persistent_workers": False})
    runner = SplitMaskRunner.from_cfg(config)
    assert runner._train_dataloader["dataset"]["type"] == "SegFolder" and runner._train_dataloader["num_workers"] == 0
    pyramid = runner.model.backbone.pyramid
    assert type(pyramid) is ResampledTaps
    assert runner.model.decode_head.in_channels == [24] * 4 and runner.model.auxiliary_head.in_channels == 24
    before = {name: value.clone() for name, value in pyramid.state_dict().items()}
    runner.train()
    assert [name for name, value in pyramid.state_dict().items() if torch.equal(before[name], value)] == []


def test_what_the_runner_reads_follows_from_the_config(data: Path) -> None:
    config = load_config(ROOT / "seg_configs" / "demo.py") | {"data_root": str(data), "class_weights": None}
    values = mmengine_values({**config, "steps": 50, "batch_size": 6, "accumulate": 3, "eval_every": 7})
    # mmengine counts micro-batches: three of two images make a step of six.
    assert values["train_cfg"] == {"type": "IterBasedTrainLoop", "max_iters": 150, "val_interval": 21}
    warmup, poly = values["param_scheduler"]
    assert (warmup["end"], poly["begin"], poly["end"]) == (15, 17, 153)  # a tenth of the steps
    assert values["model"]["decode_head"]["num_classes"] == 3
    assert values["train_dataloader"]["batch_size"] == 2 and values["optim_wrapper"]["accumulative_counts"] == 3
    assert values["val_dataloader"]["dataset"]["test_mode"] is True


def test_single_values_win_and_whole_entries_stay() -> None:
    derived = {"type": "IterBasedTrainLoop", "max_iters": 100, "val_interval": 20}
    assert _completed(None, derived) == derived
    assert _completed(ConfigDict(val_interval=5), derived) == derived | {"val_interval": 5}
    own = ConfigDict(type="EpochBasedTrainLoop", max_epochs=3)
    assert _completed(own, derived) is own, "max_iters is nothing to it"
    loader = ConfigDict(dataset={"type": "CityscapesDataset"}, batch_size=2)
    assert _completed(loader, {"batch_size": 8, "num_workers": 2, "dataset": {}}) is loader
    assert _completed([{"type": "PolyLR"}], [{"type": "LinearLR"}]) == [{"type": "PolyLR"}]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_steps_of_mmengine_are_ours(data: Path, accumulate: int) -> None:
    """As many optimizer steps, each at the lr of `tools/train_seg.py`."""
    recipe = SegRecipe.load(ROOT / "seg_configs" / "demo.py").override({"steps": 50, "batch_size": 6, "lr": 1.0})
    changed = {"data_root": str(data), "class_weights": None, "accumulate": accumulate}
    values = mmengine_values(recipe.config | changed)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    wrapper = OptimWrapper(optimizer, accumulative_counts=values["optim_wrapper"]["accumulative_counts"])
    wrapper.initialize_count_status(torch.nn.Module(), 0, values["train_cfg"]["max_iters"])
    schedulers = [PARAM_SCHEDULERS.build({**s, "optimizer": wrapper}) for s in values["param_scheduler"]]
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    for _ in range(values["train_cfg"]["max_iters"]):
        wrapper.update_params(weight.sum() * 0)
        for scheduler in schedulers:
            scheduler.step()
    expected = [recipe.lr_factor(step, 50) for step in range(50)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_classes_weigh_as_in_our_tool(data: Path) -> None:
    config = load_config(ROOT / "seg_configs" / "demo.py") | {"data_root": str(data)}
    loss = mmengine_values(config)["model"]["decode_head"]["loss_decode"]
    split, classes = find_split(data, "train"), find_classes(data, None, config, False)
    (_, counts) = check_splits({"train": split}, classes, 0.0, data / "bad_images.txt")
    assert loss["type"] == "ClassWeightedCrossEntropy"
    assert loss["class_weight"] == class_weights("median_frequency", counts["train"]) != [1.0] * 3


def test_a_batch_that_the_processes_cannot_share_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 images on 3 GPUs would be 15."""
    set_torchrun(monkeypatch, rank=0, world_size=3)
    config = load_config(ROOT / "seg_configs" / "demo.py") | {"data_root": str(data), "class_weights": None}
    assert mmengine_values({**config, "batch_size": 12})["train_dataloader"]["batch_size"] == 4
    with pytest.raises(ValueError, match=r"batch_size 16 .* multiple of 3 \(accumulate 1 x 3 processes\)"):
        mmengine_values({**config, "batch_size": 16})


def test_what_cannot_be_known_is_said(data: Path) -> None:
    config = load_config(ROOT / "seg_configs" / "demo.py")
    with pytest.raises(ValueError, match="data_root is missing"):
        mmengine_values(config)
    with pytest.raises(ValueError, match="unknown class_weights 'median': did you mean 'median_frequency'"):
        mmengine_values({**config, "data_root": str(data), "class_weights": "median"})
    (data / "images" / "train" / "0.jpg").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"0\.jpg cannot be read .*: repair or remove it"):
        mmengine_values({**config, "data_root": str(data)})
    given = {**config, "data_root": str(data), "class_weights": None}
    for change, message in (
        ({"use_tta": True}, r"one scale.*use_tta=False"),
        ({"labels": 0.1}, r"labels=0.1 is that of tools/train_seg.py.*labels=1.0"),
        ({"batch_size": 5, "accumulate": 2}, "batch_size 5 must be a multiple of accumulate 2"),
        ({"steps": 0}, "--steps 0 must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            mmengine_values({**given, **change})
    with pytest.raises(ValueError, match=r"ema .* ema=none"):
        mmengine_values({**config, "data_root": str(data), "class_weights": None, "ema": 0.5})


def test_deep_images_have_one_range_under_mmsegs_runner_too(tmp_path: Path) -> None:
    """Of the training images, as in tools/train_seg.py; each by itself would make dark and bright ones alike."""
    from tools.segmentation.dataset import SegFolder, SegImage

    root = make_data(tmp_path, count=3)
    for name, factor in (("train", 100), ("val", 50)):
        for number in range(3):
            (root / f"images/{name}/{number}.jpg").unlink()
            values = np.linspace(0, (number + 1) * factor, 120).reshape(10, 12).astype(np.uint16)
            Image.fromarray(values).save(root / f"images/{name}/{number}.png")
    means = {}
    for split in ("train", "val"):
        folder = SegFolder(str(root), split, None, ["a", "b", "c"], [[0, 0, 0]] * 3, False, [], split == "val")
        means[split] = [np.asarray(folder.get_data_info(index)["image"]).mean() for index in range(3)]
    assert means["train"] == pytest.approx([means["train"][2] / 3, means["train"][2] * 2 / 3, means["train"][2]], abs=2)
    assert means["val"] == pytest.approx([mean / 2 for mean in means["train"]], abs=2)
    # mmseg's inference has a file alone: what the run writes into its config says the range.
    cfg = Config.fromfile(ROOT / "seg_configs" / "demo.py")
    cfg.data_root = str(root)
    _keep_range(cfg)
    (step,) = [step for step in cfg.test_pipeline if step["type"] == "SegImage"]
    found = SegImage(step["value_range"])({"img_path": str(root / "images/val/1.png")})["img"]
    assert found.mean() == pytest.approx(means["val"][1], abs=0.5)
    assert SegImage()({"img_path": str(root / "images/val/1.png")})["img"].mean() > 1.5 * means["val"][1]
    shutil.rmtree(root / "images" / "train")  # a test may have no training images at hand
    cfg = Config.fromfile(ROOT / "seg_configs" / "demo.py")
    cfg.data_root = str(root)
    _keep_range(cfg)
    assert all("value_range" not in step for step in cfg.test_pipeline)
