"""Trained models as ONNX graphs: what the runtime says of an image is what the run's own predictor says.

The graphs are made in tools/detection/graph.py, tools/segmentation/graph.py and tools/classification/graph.py.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.in_process import run_tool
from tests.helpers.small_runs import TOOLS, command, make_inputs, skip_without_its_library
from tools import export
from tools.finetuning.graph import is_same
from tools.predictor import Predictor, load_predictor

FINE_TUNING = [tool for tool in TOOLS if tool.startswith("train_")]
SIZES = {"train_det": (48, 64), "train_seg": (64, 64), "train_cls": None}


@pytest.fixture(scope="module", params=FINE_TUNING)
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The tool, its trained run, and a graph of it."""
    tool = request.param
    skip_without_its_library(tool)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp(tool)
    data = make_inputs(tool, folder / "data")
    more = ["--classes", data / "classes.json"] if tool == "train_seg" else []
    words = command(tool, data, folder / "run", "--steps", 2, "--workers", 0, *more)
    done = run_tool(import_module(f"tools.{tool}").main, *words[2:])
    assert done.returncode == 0, done.stderr
    size = SIZES[tool]
    asked = [] if size is None else ["--img-size", f"{size[0]},{size[1]}"]
    done = run_tool(export.main, folder / "run", folder / "model.onnx", *asked)
    assert done.returncode == 0, done.stderr
    assert "its answers on two images are the model's" in done.stdout
    return tool, folder / "run", folder / "model.onnx"


def answers(file: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs by name for uint8 `(H, W, 3)`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def about(file: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map["splitmask_backbones.json"])


def test_the_same_as_the_predictor(run: tuple[str, Path, Path]) -> None:
    tool, output, file = run
    predictor: Predictor = load_predictor(output, device="cpu")
    said = about(file)
    assert said["command"] == tool and said["class_names"] == predictor.class_names
    height, width = said["input"]["size"]
    assert SIZES[tool] in (None, (height, width))
    assert "value_range" not in said["input"] and ("test_crop" in said["input"]) == (tool == "train_cls")
    predictor.task._value_range = (310, 4020)
    deep = predictor.task.prepared()
    predictor.task._value_range = None
    assert deep["value_range"] == [310, 4020] and deep.get("test_crop") == said["input"].get("test_crop")
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    right = predictor(pixels)
    if tool == "train_cls":  # whose crop is the middle of a larger image
        crop = predictor.task._crop(Image.fromarray(pixels))  # type: ignore[attr-defined]
        pixels = crop.permute(1, 2, 0).numpy()
    found = answers(file, pixels)
    if tool == "train_cls":
        assert found["scores"][0] == pytest.approx(right["scores"], abs=1e-5)
    elif tool == "train_seg":
        assert np.array_equal(found["labels"][0], right["labels"])
        assert found["scores"].shape == (1, height, width) and (found["scores"] > 0).all()
    else:
        kept = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(axis=1)
        assert len(right["boxes"]) == kept.sum() > 0
        assert found["boxes"][kept] == pytest.approx(right["boxes"], abs=1e-3)
        assert np.array_equal(found["labels"][kept], right["labels"])
        assert found["scores"][kept] == pytest.approx(right["scores"], abs=1e-5)
        assert found["masks"].shape == (len(kept), 28, 28)


@pytest.mark.parametrize("run", ["train_cls"], indirect=True)
def test_a_classifier_takes_any_batch(run: tuple[str, Path, Path]) -> None:
    _, _, file = run
    import onnxruntime

    size = about(file)["input"]["size"]
    images = np.random.default_rng(0).random((3, 3, *size), dtype=np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    together = session.run(None, {"images": images})[0]
    assert together.shape[0] == 3
    assert session.run(None, {"images": images[1:2]})[0][0] == pytest.approx(together[1], abs=1e-6)


def test_files_are_kept_and_names_are_checked(run: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, output, file = run
    for words, message in (
        ((output, file), f"{file} exists: choose another name, or add --overwrite"),
        ((output, tmp_path / "model.pt"), "must end in .onnx"),
        ((output, tmp_path / "none" / "model.onnx"), "is no folder: make it first"),
        ((tmp_path, tmp_path / "model.onnx"), "holds no run of tools/train_det.py"),
        ((output, tmp_path / "model.onnx", "--img-size", "0"), "'0' is not a size"),
    ):
        done = run_tool(export.main, *words)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("run", ["train_det"], indirect=True)
def test_a_run_of_detectron2_is_exported_by_detectron2(run: tuple[str, Path, Path]) -> None:
    _, output, _ = run
    task: Any = load_predictor(output, device="cpu").task
    task.engine = "detectron2"
    with pytest.raises(ValueError, match="whose export is detectron2's own"):
        task.graph(None)


@pytest.mark.parametrize("run", ["train_seg"], indirect=True)
def test_a_segmentor_of_whole_images_asks_for_their_size(run: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, output, _ = run
    done = run_tool(export.main, output, tmp_path / "model.onnx")
    assert done.returncode == 2 and done.stderr.startswith("error: --img-size H,W is needed: the run evaluates whole")


@pytest.mark.parametrize("turns", [False, True])
def test_one_map_for_two_classes_and_bgr(turns: bool) -> None:
    from types import SimpleNamespace

    from tools.segmentation.graph import graph_of

    class Model(torch.nn.Module):
        data_preprocessor = SimpleNamespace(
            channel_conversion=not turns, mean=torch.tensor([10.0, 20.0, 30.0]), std=torch.tensor([1.0, 2.0, 3.0])
        )
        decode_head = SimpleNamespace(threshold=0.3)

        def encode_decode(self, pixels: torch.Tensor, about: Any) -> torch.Tensor:
            return pixels[:, :1] / 100  # the first channel that the model takes

    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels, scores = graph_of(Model()).module(image)
    first = image[0, 2 if turns else 0] * 255
    foreground = torch.sigmoid((first - 10) / 100)
    assert torch.equal(labels[0], (foreground > 0.3).long()) and labels.sum() > 0
    assert torch.allclose(scores[0], foreground.where(labels[0] == 1, 1 - foreground), atol=1e-6)


def test_what_counts_as_the_same() -> None:
    right = torch.tensor([[100.0, 0.0]])
    assert is_same(right, right + 0.05) and not is_same(right, right + 0.2)
    assert not is_same(right, right[:, :1]) and is_same(right[:0], right[:0])
    labels = torch.zeros(2000, dtype=torch.long)
    moved = labels.clone()
    moved[:2] = 1
    assert is_same(labels, moved)
    moved[:3] = 1
    assert not is_same(labels, moved)
