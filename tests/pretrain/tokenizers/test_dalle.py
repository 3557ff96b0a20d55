"""DALL-E's encoder as a tokenizer: the values of OpenAI's own package, its place in a run, files that are not it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.paths import ROOT

pytest.importorskip("transformers", reason="the extra 'convert' is not installed")

HIDDEN, VOCAB, BLOCKS = 64, 512, 1  # the least that OpenAI's class takes
GOLDEN = ROOT / "tests/golden/dalle.json"
"""Shapes by OpenAI's names, and the outputs of `dall_e.Encoder` (package DALL-E 0.1) for `weights` and `pixels`."""


def weights(shapes):
    """Returns weights that NumPy makes alike everywhere."""
    state = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = 1.5 * np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        state[name] = torch.from_numpy(np.random.default_rng(i).normal(scale=scale, size=shape)).float()
    return state


def pixels():
    return torch.from_numpy(np.random.default_rng(99).uniform(size=(2, 3, 32, 48))).float()


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("dalle") / "dalle.safetensors"
    save_file(weights(golden["shapes"]), str(path))
    return path


def test_stored_values_of_openais_package(golden, file):
    from pretrain.tokenizers.dalle import DalleTokenizer

    tokenizer = DalleTokenizer(file)
    assert tokenizer.vocab_size == VOCAB
    logits = tokenizer.logits(pixels())
    assert len(logits[0].argmax(0).unique()) > 3
    torch.testing.assert_close(logits[0, :8].flatten(1), torch.tensor(golden["logits"]), atol=2e-4, rtol=1e-4)
    assert logits.argmax(1).tolist() == golden["tokens"]


def test_tokens_of_a_crop_are_those_of_the_half_size_picture(file):
    from pretrain.tokenizers.dalle import DalleTokenizer

    tokenizer = DalleTokenizer(file)
    # Constant over 2 x 2 pixels away from the border of its cells: resizing by half in blocks keeps flat areas.
    flat = pixels()[..., :1, :1].expand(-1, -1, 64, 96)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    tokens = tokenizer.tokens_of((flat - mean) / std, 16)
    assert tokens.shape == (2, 4 * 6)
    assert torch.equal(tokens, tokenizer.logits(flat[..., :32, :48]).argmax(1).flatten(1))
    noisy = torch.randn(2, 3, 64, 96)
    together = tokenizer.tokens_of(noisy.repeat(17, 1, 1, 1), 16)  # more than go through at a time
    assert torch.equal(together, tokenizer.tokens_of(noisy, 16).repeat(17, 1))
    small = torch.nn.functional.interpolate(noisy * std + mean, scale_factor=0.5, mode="bicubic", antialias=True)
    assert torch.equal(tokenizer.tokens_of(noisy, 16), tokenizer.logits(small.clamp(0, 1)).argmax(1).flatten(1))


def test_transformers_names_are_read_too(golden, file, tmp_path):
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    from pretrain.tokenizers.dalle import DalleTokenizer

    torch.manual_seed(0)
    config = FlavaImageCodebookConfig(hidden_size=32, vocab_size=64, num_blocks_per_group=2)
    theirs = FlavaImageCodebook(config).eval()
    save_file({f"image_codebook.{k}": v for k, v in theirs.state_dict().items()}, str(tmp_path / "flava.safetensors"))
    images = pixels()
    expected = theirs.get_codebook_indices(0.8 * images + 0.1)
    assert torch.equal(DalleTokenizer(tmp_path / "flava.safetensors").logits(images).argmax(1), expected)


def test_checkpoints_do_not_carry_it_and_devices_do(file):
    from pretrain.tokenizers.dalle import DalleTokenizer

    tokenizer = DalleTokenizer(file)
    assert tokenizer.state_dict() == {} and list(tokenizer.parameters()) == []
    tokenizer.to(torch.float64)
    assert next(tokenizer._encoder.parameters()).dtype == torch.float64


def test_every_tokenizer_gives_words_of_images():
    tokenizer = Tokenizer(random_projection(32, 768, 0), "mean")
    images = torch.randn(2, 3, 32, 48)
    patch = images[1, :, 16:32, 32:48]  # the last of two rows of three
    tokens = tokenizer.tokens_of(images, 16)
    assert tokens.shape == (2, 6)
    assert tokens[1, 5] == tokenizer((patch.flatten())[None])[0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "does not exist or is not a file"),
        (lambda p: p.write_bytes(b""), "not a safetensors file"),
        (lambda p: torch.save(torch.nn.Linear(2, 2), p), "not a safetensors file.*weights_only=False"),
        (lambda p: save_file({"a": torch.zeros(2)}, str(p)), "not DALL-E's encoder"),
    ],
)
def test_other_files(make, match, tmp_path):
    from pretrain.tokenizers.dalle import DalleTokenizer

    make(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=match) as found:
        DalleTokenizer(tmp_path / "x.safetensors")
    assert str(tmp_path / "x.safetensors") in str(found.value)


def test_a_run_with_it(golden, file, tmp_path):
    from pretrain.monitoring.pictures import load_method

    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")

    def call(*words):
        tool = [sys.executable, ROOT / "tools/pretrain.py", "--recipe", "tiny", "--data", tmp_path / "images"]
        tool += ["--tokenizer", "dalle", "--workers", 0, "--steps", 2, "--output", tmp_path / "run", *words]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([str(w) for w in tool], capture_output=True, text=True, env=env, timeout=180)

    missing = call()
    assert missing.returncode == 2 and "--tokenizer dalle needs the 8192 token ids" in missing.stderr
    done = call("--tokenizer-weights", file)
    assert done.returncode == 0, done.stderr
    statistics = json.loads((tmp_path / "run/tokenizer.json").read_text())
    assert (statistics["tokenizer"], statistics["vocab_size"]) == ("dalle", VOCAB)
    with safe_open(str(next((tmp_path / "run/checkpoints").glob("*"))), "pt") as checkpoint:
        names = list(checkpoint.keys())
        assert not any("tokenizer" in name for name in names)
        assert checkpoint.get_tensor("model.head.weight").shape[0] == VOCAB
    assert load_method(tmp_path / "run")[1].tokenizer.vocab_size == VOCAB  # for the pictures
    assert call("--resume").returncode == 0  # the file is that of the run
    save_file(
        {name: 2 * value for name, value in weights(golden["shapes"]).items()}, str(tmp_path / "other.safetensors")
    )
    other = call("--resume", "--tokenizer-weights", tmp_path / "other.safetensors")
    assert other.returncode == 2 and "--tokenizer-weights was" in other.stderr
