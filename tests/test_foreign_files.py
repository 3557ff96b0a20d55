"""Every reader of files from outside, on what nobody would write: it succeeds, or says in one sentence why not."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from pretrain.data.decode import UnreadableImage, read_image
from pretrain.data.lists import coco_names, read_lines, read_text_list
from splitmask_backbones import VisionTransformer, load_encoder, save_encoder
from splitmask_backbones.convert.conversion import convert
from splitmask_backbones.convert.hf_config import check_fields, encoder_arguments
from splitmask_backbones.convert.read import read_weights
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import smooth
from tools.classification.layouts import read_pairs
from tools.detection.coco import read_coco
from tools.detection.config import load_config as load_det_config
from tools.segmentation.classes import read_classes
from tools.segmentation.config import load_config as load_seg_config
from tools.segmentation.labels import read_label
from tools.segmentation.layout import make_layout

fuzz = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

SIZES: dict[str, Any] = {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 1}


def state_of() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(**SIZES, use_class_token=True).state_dict()


def torch_bytes(**kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": state_of(), "epoch": 3}, buffer, **kwargs)
    return buffer.getvalue()


def image_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, kind)
    return buffer.getvalue()


def refusal_of(read: Callable[[Path], Any], path: Path) -> str | None:
    """Returns what a reader says against a file, or None where it reads it; anything but our own errors is raised."""
    try:
        read(path)
    except UnreadableImage as error:
        return f"{path.name}: {error}"  # whoever reads many images adds the path
    except UserError as error:
        return str(error)
    return None


def says_one_sentence(read: Callable[[Path], Any], path: Path) -> None:
    """Calls a reader; whatever it raises has to be the project's own error, in one line that names the file."""
    text = refusal_of(read, path)
    assert text is None or (path.name in text and "\n" not in text and "Traceback" not in text)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws a file that was cut, had bits flipped, bytes exchanged, or something else put in front."""
    kind = draw(st.sampled_from(["cut", "flip", "bytes", "front", "insert"]))
    place = draw(st.integers(0, len(content) - 1))
    head = draw(st.integers(0, min(len(content) - 1, 200)))  # headers break more than pixels do
    place = draw(st.sampled_from([place, head]))
    if kind == "cut":
        return content[:place]
    if kind == "front":
        return draw(st.binary(max_size=30)) + content
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    result = bytearray(content)
    if kind == "flip":
        result[place] ^= 1 << draw(st.integers(0, 7))
    else:
        result[place : place + 4] = draw(st.binary(min_size=4, max_size=4))
    return bytes(result)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places_in(inner, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Draws the JSON value with something else, or nothing, at one or two of its places."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places_in(value)))
        if not place:
            return draw(anything)
        inner = value
        for key in place[:-1]:
            inner = inner[key]
        if draw(st.booleans()) and isinstance(inner, dict):
            del inner[place[-1]]
        else:
            inner[place[-1]] = draw(anything)
    return value


WEIGHTS = {
    "zip.pth": torch_bytes(),
    "legacy.pth": torch_bytes(_use_new_zipfile_serialization=False),
    "plain.safetensors": save(state_of()),
}


@fuzz
@given(data=st.data(), name=st.sampled_from(list(WEIGHTS)))
def test_damaged_weights(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("weights") / name
    path.write_bytes(data.draw(damaged(WEIGHTS[name])))
    says_one_sentence(read_weights, path)


@fuzz
@given(content=st.text(max_size=60).map(lambda text: text.encode()) | st.binary(max_size=60), pickle=st.booleans())
def test_weights_that_are_text_or_noise(tmp_path_factory, content, pickle):
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    path.write_bytes((b"\x80\x02" if pickle else b"") + content)
    says_one_sentence(read_weights, path)


@fuzz
@given(data=st.data())
def test_tensors_that_are_not_those_of_a_model(tmp_path_factory, data):
    """The file is whole, but a tensor is missing, has another name, shape, type or value."""
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    state = state_of()
    name = data.draw(st.sampled_from(list(state)))
    value = state.pop(name)
    shapes = st.lists(st.integers(0, 5), max_size=5)
    kind = data.draw(st.sampled_from(["gone", "name", "shape", "integers", "NaN", "scalar"]))
    if kind == "name":
        state[data.draw(st.sampled_from([f"x.{name}", f"{name}.x", "blocks.9.norm1.weight", "rel_pos_h", ""]))] = value
    elif kind == "shape":
        state[name] = torch.ones(data.draw(shapes))
    elif kind != "gone":
        state[name] = {"integers": value.long(), "NaN": value * float("nan"), "scalar": torch.tensor(1.0)}[kind]
    torch.save(state, path)
    destination = path.with_name("out.safetensors")
    says_one_sentence(lambda path: convert(path, destination), path)


ENCODER_CONFIG = VisionTransformer(**SIZES, use_class_token=True).config


@fuzz
@given(config=mutated(ENCODER_CONFIG))
def test_an_encoder_file_with_another_config(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    path.write_bytes(save(state_of(), {"config": json.dumps(config)}))
    says_one_sentence(load_encoder, path)
    says_one_sentence(lambda path: convert(path, path.with_name("out.safetensors")), path)


@fuzz
@given(data=st.data())
def test_a_damaged_encoder_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_encoder(VisionTransformer(**SIZES), folder / "encoder.safetensors")
    content = (folder / "encoder.safetensors").read_bytes()
    (folder / "encoder.safetensors").write_bytes(data.draw(damaged(content)))
    says_one_sentence(load_encoder, folder / "encoder.safetensors")


HF_CONFIG = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": [32, 32],
    "patch_size": 8, "intermediate_size": 64, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "qkv_bias": True,
    "id2label": {"0": "cat"}, "architectures": ["ViTModel"], "torch_dtype": "float32",
}  # fmt: skip


@fuzz
@given(config=mutated(HF_CONFIG))
def test_a_config_of_hugging_face(config):
    pytest.importorskip("transformers", reason="the extra 'convert' is not installed")

    def read(path: Path) -> Any:
        if isinstance(config, dict):
            check_fields(path.with_name("model.safetensors"), config)
            return encoder_arguments(path.with_name("model.safetensors"), config)

    says_one_sentence(read, Path("folder/config.json"))


@fuzz
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]))
def test_damaged_images(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("images") / "a.jpg"
    path.write_bytes(data.draw(damaged(image_bytes(kind))))
    says_one_sentence(read_image, path)
    says_one_sentence(read_label, path)


LABEL = io.BytesIO()
Image.fromarray(np.zeros((4, 4), np.uint8)).save(LABEL, "PNG")


@fuzz
@given(content=damaged(LABEL.getvalue()))
def test_damaged_labels(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("labels") / "a.png"
    path.write_bytes(content)
    says_one_sentence(read_label, path)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
    "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "tree"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 10, 8], "area": 80.0, "iscrowd": 0,
         "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]]},
        {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 30, 20], "area": 300, "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [300, 300]}},
    ],
}  # fmt: skip


@fuzz
@given(content=mutated(COCO))
def test_annotations(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    says_one_sentence(lambda path: read_coco(path, path.parent), path)
    says_one_sentence(lambda path: coco_names(path, path.parent), path)


@fuzz
@given(value=mutated({"classes": ["cell", "tree"], "palette": [[1, 2, 3], [4, 5, 6]], "reduce_zero_label": False}))
def test_classes(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("classes") / "classes.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    says_one_sentence(lambda path: read_classes(path, "--classes"), path)


@fuzz
@given(value=mutated({"image": "images/{split}", "label": "labels/{split}", "label_ids": [0, 2]}))
def test_layouts(value):
    text = refusal_of(lambda path: make_layout(value), Path("config.py"))
    assert text is None or "\n" not in text


@fuzz
@given(content=damaged(json.dumps(COCO).encode()) | st.binary(max_size=40))
def test_damaged_json(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(content)
    says_one_sentence(lambda path: read_coco(path, path.parent), path)
    says_one_sentence(lambda path: coco_names(path, path.parent), path)
    says_one_sentence(lambda path: read_classes(path, "--classes"), path)


@fuzz
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_lists(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("lists") / "a.txt"
    path.write_bytes(content)
    says_one_sentence(read_text_list, path)
    says_one_sentence(read_lines, path)
    says_one_sentence(lambda path: read_pairs(path, path.parent), path)


PROGRAMS = {
    "syntax": b"recipe = (",
    "bytes": b"\xff\xfe\x00recipe",
    "zeros": b"recipe\0 = 1",
    "error": b"1 / 0",
    "exit": b"raise SystemExit(0)",
    "recursion": b"def f(): f()\nf()",
    "import": b"import no_such_module",
    "value": b"recipe = 3\nmodel = 3",
    "empty": b"",
    "lines": b"raise ValueError('one\\ntwo')",
    "base": b"_base_ = ['no_such_file.py']",
    "deep": b"x = " + b"(" * 300 + b")" * 300,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_configs_that_are_no_config(name, tmp_path):
    path = tmp_path / "config.py"
    path.write_bytes(PROGRAMS[name])
    for load in (load_det_config, load_seg_config):
        with pytest.raises(UserError, match=r"config\.py") as caught:
            load(str(path)) if load is load_det_config else load(path)
        assert "\n" not in str(caught.value)
