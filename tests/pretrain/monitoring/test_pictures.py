"""The picture of the words: patches go back where they came from, and a run's words are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.monitoring.pictures import average_patches, save_token_picture, unpatchify
from splitmask_backbones import VisionTransformer, save_encoder
from splitmask_backbones.vit import patchify
from tools import pretrain


def test_unpatchify_undoes_patchify():
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(unpatchify(patchify(image, 16)[0], (2, 3), 16), image[0])


def test_average_patches_by_hand():
    patches = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 0.4]])
    drawn = average_patches(patches, torch.tensor([2, 2, 0]), 3)
    torch.testing.assert_close(drawn, torch.tensor([[0.2, 0.4], [0.5, 0.5], [0.5, 0.5]]))


def test_picture_of_a_run(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 70)).save(tmp_path / f"images/{i}.png")
    options = ["--recipe", "tiny", "--steps", "1", "--workers", "0", "--tokenizer", "random_patches"]
    run = tmp_path / "run"
    scales = {"img_size": 64, "embed_dim": 192, "depth": 12, "num_heads": 3, "layer_scale": 0.1}  # of no --model
    save_encoder(VisionTransformer(**scales), tmp_path / "start.safetensors")
    options += ["--init", str(tmp_path / "start.safetensors")]
    pretrain.main([*options, "--vocab-size", "32", "--data", str(tmp_path / "images"), "--output", str(run)])
    files = sorted((tmp_path / "images").iterdir())
    save_token_picture(run, files, tmp_path / "words.png", num_rows=2)
    picture = np.asarray(Image.open(tmp_path / "words.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert picture.reshape(-1, 3).std() > 20
    with pytest.raises(ValueError, match="holds no pre-training run"):
        save_token_picture(tmp_path, files, tmp_path / "x.png")
