"""A trained run in Python: what `--predict` draws and writes, image by image."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers.in_process import run_tool
from tests.helpers.small_runs import TOOLS, command, make_inputs, skip_without_its_library
from tools.predictor import load_predictor

FINE_TUNING = [tool for tool in TOOLS if tool.startswith("train_")]


@pytest.fixture(scope="module", params=FINE_TUNING)
def run(request, tmp_path_factory):
    """The tool, its trained run with a bf16 model's predictions, and the pictures that they are of."""
    from importlib import import_module

    tool = request.param
    skip_without_its_library(tool)
    folder = tmp_path_factory.mktemp(tool)
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(pictures / "wide.png")
    turned = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(pictures / "turned.png", exif=exif)
    data = make_inputs(tool, folder / "data")
    more = ["--classes", data / "classes.json"] if tool == "train_seg" else []
    main = import_module(f"tools.{tool}").main
    words = command(tool, data, folder / "run", "--steps", 2, "--workers", 0, "--precision", "bf16", *more)
    done = run_tool(main, *words[2:], "--predict", pictures)
    assert done.returncode == 0, done.stderr
    return tool, folder / "run", pictures


def test_the_same_as_predict(run):
    tool, output, pictures = run
    predictor = load_predictor(output)
    assert predictor.source.endswith(".safetensors")
    for path in sorted(pictures.iterdir()):
        found = predictor(path)
        if tool == "train_seg":
            from tools.segmentation.classes import Classes
            from tools.segmentation.draw import draw_overlay

            upright = Image.open(path).convert("RGB")
            upright = upright.transpose(Image.Transpose.ROTATE_270) if path.stem == "turned" else upright
            palette = json.loads((output / "config.json").read_text())["free"]["palette"]
            drawn = draw_overlay(upright, found["labels"], Classes(predictor.class_names, palette, False))
            assert np.array_equal(drawn, Image.open(output / "predictions" / path.name))
            continue
        listed = json.loads((output / "predictions" / "predictions.json").read_text())[path.name]
        if tool == "train_cls":
            assert found["scores"].sum() == pytest.approx(1, abs=1e-5)
            order = np.argsort(-found["scores"], kind="stable")[: len(listed)]
            assert [predictor.class_names[i] for i in order] == [entry["class"] for entry in listed]
            assert found["scores"][order] == pytest.approx([entry["score"] for entry in listed], abs=1e-6)
            continue
        assert len(listed) == len(found["boxes"]) == len(found["labels"]) > 0
        for entry, box, score in zip(listed, found["boxes"], found["scores"], strict=True):
            x1, y1, x2, y2 = box
            assert entry["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
            assert entry["score"] == pytest.approx(score)
        size = (90, 60) if path.stem == "turned" else (70, 90)
        assert found["masks"].shape == (len(listed), *size) and found["masks"].dtype == bool


def test_files_pictures_and_arrays_are_one(run):
    _, output, pictures = run
    predictor = load_predictor(str(output), device="cpu")
    path = pictures / "turned.png"
    of_file = predictor(str(path))
    upright = np.asarray(Image.open(path).transpose(Image.Transpose.ROTATE_270))
    for same in (Image.open(path), upright):
        found = predictor(same)
        assert all(np.array_equal(found[name], value) for name, value in of_file.items())
    assert predictor(upright[..., 0])  # gray
    values = np.random.default_rng(1).integers(0, 4000, (60, 90)).astype(np.uint16)
    Image.fromarray(values).save(pictures.parent / "deep.tif", tiffinfo={262: 0})  # white is zero
    of_file, opened = predictor(pictures.parent / "deep.tif"), predictor(Image.open(pictures.parent / "deep.tif"))
    assert all(np.array_equal(opened[name], value) for name, value in of_file.items())


def test_what_is_no_run_or_no_image(run, tmp_path):
    _, output, _ = run
    predictor = load_predictor(output)
    with pytest.raises(ValueError, match="there.jpg cannot be read: No such file"):
        predictor("there.jpg")
    with pytest.raises(ValueError, match=r"\(2, 2, 3\) of float32 is no image"):
        predictor(np.zeros((2, 2, 3), np.float32))
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for cut in (path, Image.open(path)):  # Pillow has read the header alone
        with pytest.raises(ValueError, match="cannot be read: .*truncated"):
            predictor(cut)
    for nothing in (None, b"bytes", np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="is no image: give a file"):
            predictor(nothing)
    with pytest.raises(ValueError, match="holds no run of tools/train_det.py"):
        load_predictor(tmp_path)
    with pytest.raises(ValueError, match="holds no best.safetensors"):
        load_predictor(output, best=True)
    with pytest.raises(ValueError, match="device"):
        load_predictor(output, device="gpu")


def test_a_config_with_an_entry_missing_is_told(run, tmp_path):
    tool, output, _ = run
    copied = shutil.copytree(output, tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    for name in ("encoder", "data", "recipe" if tool == "train_cls" else "config", "command"):
        (copied / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != name}))
        missing = "holds no run of" if name == "command" else f"does not hold what a run of tools/{tool}.py records"
        with pytest.raises(ValueError, match=missing):
            load_predictor(copied)
