"""splitmask_backbones.convert.graphs: what is written runs by itself, and gives the encoder's tokens."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from splitmask_backbones import VisionTransformer, save_encoder
from splitmask_backbones.convert import convert, graphs
from splitmask_backbones.convert.names import GRAPHS

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

LIBRARIES = {"onnx": "onnxruntime", "exported": "torch"}
WINDOWS = {"window_size": 3, "window_block_indexes": (0,), "use_rel_pos": True}


def encoder_of(**kwargs: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = VisionTransformer(**{**sizes, **kwargs}).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def tokens_of(path: object, target: str, images: torch.Tensor) -> torch.Tensor:
    """What the written file computes, without this project."""
    if target == "exported":
        return torch.export.load(path).module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["tokens"], {"images": images.numpy()})[0])


@torch.no_grad()
@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({"use_class_token": True}, None),
        ({"num_registers": 2}, 40),  # positions are resized
        ({"positions": "sincos"}, (20, 44)),  # patches are padded
        ({"positions": "fourier", "position_resize": "plain"}, None),
        (WINDOWS, (40, 24)),  # windows are padded
        ({"positions": "none", "relative_position_bias": "per_block", "use_class_token": True}, (24, 40)),
        ({"layer_scale": 0.5, "final_norm": False}, None),
    ],
)
def test_any_batch_gives_the_encoders_tokens(target, kwargs, size, tmp_path):
    pytest.importorskip(LIBRARIES[target], reason="the extra 'export' is not installed")
    encoder = encoder_of(**kwargs)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    path = tmp_path / f"encoder{GRAPHS[target]}"
    done = convert(tmp_path / "encoder.safetensors", path, to=target, img_size=size)
    assert done.differences["target"] is not None and done.differences["target"] < done.tolerance
    height, width = (size, size) if isinstance(size, int) else size or (32, 32)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(tokens_of(path, target, images), encoder(images), rtol=0, atol=2e-5)


def test_timms_weights_become_a_graph_of_timms_model(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    convert(tmp_path / "timm.pth", tmp_path / "timm.onnx", to="onnx")
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(images)
    torch.testing.assert_close(tokens_of(tmp_path / "timm.onnx", "onnx", images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", GRAPHS)
def test_the_file_says_what_it_is_and_how_pixels_are_normalised(target, tmp_path):
    pytest.importorskip(LIBRARIES[target], reason="the extra 'export' is not installed")
    encoder = encoder_of()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    path = tmp_path / f"encoder{GRAPHS[target]}"
    convert(tmp_path / "encoder.safetensors", path, to=target, img_size=(40, 24))
    if target == "exported":
        kept = {graphs.ABOUT: ""}
        torch.export.load(path, extra_files=kept)
    else:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        kept = {entry.key: entry.value for entry in model.metadata_props}
    about = json.loads(kept[graphs.ABOUT])
    assert about["input"] == {
        "size": [40, 24], "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]
    }  # fmt: skip
    assert about["config"] == encoder.config


def test_a_graph_for_one_batch_size_is_not_taken_for_one_of_any():
    encoder = encoder_of()
    images = torch.randn(2, 3, 32, 32)
    fixed = torch.export.export(encoder, (images,), strict=False).module()
    with pytest.raises(Exception, match="batch|shape|Guard"):
        graphs.batches_of_one_and_more(fixed)(images)


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    save_encoder(encoder_of(), tmp_path / "encoder.safetensors")

    def refused(match: str, destination: str, **how: object) -> None:
        with pytest.raises(ValueError, match=match):
            convert(tmp_path / "encoder.safetensors", tmp_path / destination, **how)
        assert not (tmp_path / destination).exists()

    refused("must end in .onnx for --to onnx", "graph.pt2", to="onnx")
    refused("--img-size goes with --to onnx and exported", "other.safetensors", img_size=64)
    refused("--img-size 0 is not a size", "graph.pt2", to="exported", img_size=0)
    monkeypatch.setattr(graphs.torch, "__version__", "2.1.2+cpu")
    refused(r"--to exported needs torch 2.6 or newer, this is 2.1.2\+cpu", "graph.pt2", to="exported")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused("proved with onnxruntime, .* install the extra 'export'", "graph.onnx", to="onnx")
    monkeypatch.undo()
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    monkeypatch.setattr(graphs, "MAX_ONNX_BYTES", 1000)
    refused("more than one ONNX file holds, .*use --to exported", "graph.onnx", to="onnx")


def test_an_exported_file_needs_torch_alone(tmp_path):
    save_encoder(encoder_of(use_class_token=True), tmp_path / "encoder.safetensors")
    convert(tmp_path / "encoder.safetensors", tmp_path / "encoder.pt2", to="exported")
    code = (
        "import sys, torch; tokens = torch.export.load(sys.argv[1]).module()(torch.zeros(3, 3, 32, 32)); "
        "sys.exit(0 if tokens.shape == (3, 17, 16) and 'splitmask_backbones' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "encoder.pt2")], cwd=tmp_path).returncode == 0
