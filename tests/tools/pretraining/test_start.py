"""`--init`: any encoder that can be converted, strictly loaded, kept for a resume, named in what comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from splitmask_backbones import VisionTransformer, create_encoder, load_encoder, save_encoder
from splitmask_backbones.checkpoints import read_encoder_file
from splitmask_backbones.files import sha256_of
from splitmask_backbones.run_files import INIT
from tests.helpers.pretrain_tool import OPTIONS, error_of, run
from tools.pretraining.start import digest_of

ONE_STEP = [*OPTIONS, "--steps", "1", "--lr", "1e-12"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """Returns a DeiT file of timm's with weights that nothing here makes, and its model."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    model = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=0)
    path = tmp_path_factory.mktemp("foreign") / "deit.pth"
    torch.save({"model": model.state_dict()}, path)
    return path, model


def test_a_foreign_file_is_where_training_begins(images, foreign, tmp_path) -> None:
    path, model = foreign
    words = ["--data", images, "--output", tmp_path / "run", *ONE_STEP]
    result = run(*words, "--init", path)
    assert result.returncode == 0, result.stderr
    assert f"starting from {path} (" in result.stdout
    encoder = load_encoder(tmp_path / "run/encoder.safetensors")
    for name, value in model.state_dict().items():
        if name.startswith(("blocks", "patch_embed")):
            torch.testing.assert_close(encoder.state_dict()[name], value, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder.pos_embed, model.pos_embed[:, 1:], atol=1e-6, rtol=0)  # without the class token
    (entry,) = read_encoder_file(tmp_path / "run/encoder.safetensors").lineage
    assert entry["file"] == "deit.pth" and entry["sha256"] == sha256_of(path)
    # A resume knows it, and needs no file but its own; another start is another run.
    assert run(*words, "--resume").returncode == 0
    other = tmp_path / "other.safetensors"
    save_encoder(create_encoder("vit_tiny", img_size=64), other)
    assert "--init" in error_of(run(*words, "--resume", "--init", other))
    said = error_of(run(*words, "--resume", "--init", "nowhere.pth"))
    assert "--init (a resume needs none, it has its own): nowhere.pth does not exist" in said
    plain = ["--data", images, "--output", tmp_path / "plain", *ONE_STEP]
    assert run(*plain).returncode == 0
    said = error_of(run(*plain, "--resume", "--init", other))
    assert "holds a run with other settings" in said and "--init" in said and sha256_of(other) in said
    (tmp_path / "run" / INIT).unlink()
    assert f"{INIT}, which the run began with, is gone" in error_of(run(*words, "--resume"))


def test_ours_at_another_size_and_its_lineage(images, tmp_path) -> None:
    source = tmp_path / "a.safetensors"
    torch.manual_seed(0)
    save_encoder(
        create_encoder("vit_tiny", img_size=96), source, lineage=[{"file": "older", "sha256": "x", "family": "y"}]
    )
    result = run("--data", images, "--output", tmp_path / "run", *ONE_STEP, "--init", source)
    assert result.returncode == 0, result.stderr
    assert "checking" in result.stdout + result.stderr
    encoder = load_encoder(tmp_path / "run/encoder.safetensors")
    assert encoder.img_size == (64, 64)
    torch.testing.assert_close(encoder.pos_embed, load_encoder(source, img_size=64).pos_embed, atol=1e-6, rtol=0)
    names = [entry["file"] for entry in read_encoder_file(tmp_path / "run/encoder.safetensors").lineage]
    assert names == ["older", "a.safetensors"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["--init"] == sha256_of(source) and config["free"]["init"] == str(source)


def test_beits_own_encoder_goes_on_with_its_bias_and_class_token(images, tmp_path) -> None:
    beit = pytest.importorskip("timm.models.beit")
    torch.manual_seed(5)
    sizes = {"img_size": 64, "embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 0, "global_pool": "token"}
    model = beit.Beit(**sizes, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)
    torch.nn.init.normal_(model.blocks[3].attn.relative_position_bias_table)
    torch.save(model.state_dict(), tmp_path / "beit.pth")
    words = ["--data", images, "--output", tmp_path / "run", *ONE_STEP, "--init", tmp_path / "beit.pth"]
    result = run(*words, "--method", "beit")
    assert result.returncode == 0, result.stderr
    encoder = load_encoder(tmp_path / "run/encoder.safetensors").eval()
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(pixels), model.eval().forward_features(pixels), atol=2e-5, rtol=0)
    assert "use --method beit" in error_of(run(*words[:3], tmp_path / "other", *words[4:]))


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ({"embed_dim": 96}, [], "--init: the encoder is not vit_tiny: use --model vit_tiny --embed-dim 96, the size"),
        ({"patch_size": 8}, [], "--init: the encoder has the patch size and heads of no --model"),
        ({"use_rel_pos": True}, [], "--init: the encoder has relative positions"),
        ({}, ["--method", "dino"], "--init: the encoder has no class token"),
    ],
)
def test_what_cannot_be_trained_on(images, tmp_path, arguments, more, message) -> None:
    if more:
        pytest.importorskip("lightly")
    sizes = {"img_size": 64, "embed_dim": 192, "depth": 12, "num_heads": 3} | arguments
    save_encoder(VisionTransformer(**sizes), tmp_path / "a.safetensors")
    words = ["--data", images, "--output", tmp_path / "run", *ONE_STEP, *more, "--init", tmp_path / "a.safetensors"]
    assert message in error_of(run(*words))
    assert not (tmp_path / "run/config.json").exists()


def test_a_missing_file_is_named(images, tmp_path) -> None:
    words = ["--data", images, "--output", tmp_path / "run", *ONE_STEP, "--init", tmp_path / "none.pth"]
    result = run(*words)
    assert "none.pth" in error_of(result)
    assert "checking" not in result.stdout + result.stderr, (
        "it is told before the images are read, which may take hours"
    )
    assert digest_of(tmp_path) != ""
    assert "--init is empty" in error_of(run(*words[:-1], ""))
