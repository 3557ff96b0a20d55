"""timm entries: encoder files through checkpoint_path, features_only, other image sizes."""

from __future__ import annotations

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

import splitmask_backbones.timm  # noqa: E402, F401 (registers the entries)
from splitmask_backbones import create_encoder, load_encoder, save_encoder  # noqa: E402


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    torch.manual_seed(0)
    save_encoder(create_encoder("vit_tiny", img_size=64), path)
    return path


def create(file, **kwargs):
    return timm.create_model("vit_tiny_patch16_splitmask", checkpoint_path=str(file), img_size=64, **kwargs).eval()


def test_tokens_are_the_encoders(file):
    images = torch.randn(2, 3, 64, 64)
    model = create(file, num_classes=7)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), load_encoder(file)(images), atol=1e-5, rtol=1e-4)
        assert model(images).shape == (2, 7)
        assert create(file, num_classes=0)(images).shape == (2, 192)


def test_without_a_head_a_model_gives_the_mean_of_the_tokens(file):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = create(file, num_classes=0)(images), load_encoder(file)(images).mean(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_features_only(file):
    images = torch.randn(1, 3, 64, 64)
    model = create(file, features_only=True, out_indices=(3, 7))
    encoder = load_encoder(file, out_indices=(3, 7))
    with torch.no_grad():
        for theirs, ours in zip(model(images), encoder.forward_maps(images), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


def test_another_image_size_resizes_as_load_encoder(file):
    model = timm.create_model(
        "vit_tiny_patch16_splitmask", checkpoint_path=str(file), img_size=(96, 64), num_classes=0
    ).eval()
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(images), load_encoder(file, img_size=(96, 64)).eval()(images), atol=1e-5, rtol=1e-4
        )


def test_as_many_positions_of_a_rectangle_are_told(file, caplog):
    """64 x 64 and 32 x 128 pixels have 16 patches each: whose a table of 16 is, a state dict does not say."""
    made = timm.create_model("vit_tiny_patch16_splitmask", checkpoint_path=str(file), img_size=64, num_classes=0)
    assert "positions" not in caplog.text
    long = timm.create_model("vit_tiny_patch16_splitmask", img_size=(32, 128), num_classes=0)
    long.load_state_dict(made.state_dict())
    assert "16 positions, those of this model's 2 x 8 patches: were they a square's" in caplog.text


def test_what_does_not_fit_is_an_error(file, tmp_path):
    with pytest.raises(ValueError, match="12 blocks of width 192, the model 12 of width 384: create vit_tiny_patch16"):
        timm.create_model("vit_small_patch16_splitmask", checkpoint_path=str(file), img_size=64)
    with pytest.raises(ValueError, match="the model 14 of width 192: create vit_tiny_patch16_splitmask"):
        create(file, depth=14)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    save_encoder(create_encoder("vit_tiny", img_size=64, **sizes), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="2 blocks of width 48, .*: add embed_dim=48, depth=2 and its num_heads"):
        create(tmp_path / "small.safetensors")
    assert create(tmp_path / "small.safetensors", num_classes=0, **sizes)(torch.randn(1, 3, 64, 64)).shape == (1, 48)
    save_encoder(create_encoder("vit_tiny", img_size=64, layer_scale=0.1), tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match="the file has blocks.0.ls1.gamma, which timm's model"):
        create(tmp_path / "scaled.safetensors")
    scaled = create(tmp_path / "scaled.safetensors", init_values=1.0)
    assert scaled.blocks[0].ls1.gamma[0].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no published"):
        timm.create_model("vit_small_patch16_splitmask", pretrained=True)
    save_encoder(create_encoder("vit_tiny", img_size=64, use_class_token=True), tmp_path / "cls.safetensors")
    with pytest.raises(ValueError, match="class_token=True"):
        create(tmp_path / "cls.safetensors")
    model = create(tmp_path / "cls.safetensors", class_token=True, global_pool="token", num_classes=3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert {f"vit_{size}_patch16_splitmask" for size in ("tiny", "small", "base", "large")} <= set(timm.list_models())
