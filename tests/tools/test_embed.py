"""tools/embed.py: a vector of each image as the encoder gives it, resumed after a kill; neighbours by a naive loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.decode import read_image
from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.sources import ImageList
from splitmask_backbones import create_encoder, load_encoder, save_encoder
from tests.helpers.in_process import run_tool
from tools.embed import main
from tools.embedding.neighbours import nearest, save_neighbours
from tools.embedding.run import pooled
from tools.frozen.center_crop import CenterCrop

NUM = 11


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, encoder files with and without a class token, and one whole run in `done`."""
    folder = tmp_path_factory.mktemp("embed")
    rng = np.random.default_rng(0)
    for number in range(NUM):
        place = folder / "pictures" / f"{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + number, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    torch.manual_seed(0)
    for name, with_token in (("plain", False), ("token", True)):
        encoder = create_encoder("vit_tiny", img_size=32, depth=2, use_class_token=with_token)
        save_encoder(encoder, folder / f"{name}.safetensors")
    assert main(words_of(folder, folder / "done")) == 0
    return folder


def words_of(base: Path, output: Path, weights: str = "plain") -> list[str]:
    paths = ["--data", str(base / "pictures"), "--weights", str(base / f"{weights}.safetensors")]
    return [*paths, "--output", str(output), "--workers", "0", "--device", "cpu"]


def tokens_of(base: Path, weights: str, name: str, size: int, share: float, **overrides: Any) -> torch.Tensor:
    encoder = load_encoder(base / f"{weights}.safetensors", **overrides).eval()
    crop = CenterCrop(size, share)(read_image(base / "pictures" / name))
    with torch.no_grad():
        return encoder(PixelNorm()(crop[None]))[0]


def test_a_row_is_the_mean_of_the_images_patch_tokens(base: Path) -> None:
    vectors, names = np.load(base / "done/embeddings.npy"), (base / "done/images.txt").read_text().splitlines()
    assert vectors.shape == (NUM, 192) and vectors.dtype == np.float32
    assert names == sorted(
        path.relative_to(base / "pictures").as_posix() for path in (base / "pictures").rglob("*.png")
    )
    for row in (0, 5, NUM - 1):
        expected = tokens_of(base, "plain", names[row], 32, 1.0).mean(0)
        np.testing.assert_allclose(vectors[row], expected.numpy(), rtol=1e-4, atol=1e-5)
    left = {path.name for path in (base / "done").iterdir()}
    assert left == {".lock", "config.json", "embeddings.npy", "images.txt", "neighbours.jpg"}
    config = json.loads((base / "done/config.json").read_text())
    assert config["values"] == {"img_size": 32, "test_crop": 1.0, "pool": "mean", "precision": "32"}


def test_the_class_token_and_another_size(base: Path, tmp_path: Path) -> None:
    options = ["--pool", "class", "--img-size", "48", "--test-crop", "0.75", "--include", "*0.png"]
    assert main([*words_of(base, tmp_path / "out", "token"), *options]) == 0
    assert (tmp_path / "out/images.txt").read_text() == "0/00.png\n0/10.png\n"
    expected = tokens_of(base, "token", "0/10.png", 48, 0.75, img_size=48)[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/embeddings.npy")[1], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_prefix_tokens_are_not_in_the_mean(base: Path, tmp_path: Path) -> None:
    assert main(words_of(base, tmp_path / "out", "token")) == 0
    expected = tokens_of(base, "token", "0/00.png", 32, 1.0)[1:].mean(0)
    np.testing.assert_allclose(np.load(tmp_path / "out/embeddings.npy")[0], expected.numpy(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pools() -> None:
    encoder = create_encoder("vit_tiny", img_size=32, depth=1, use_class_token=True, num_registers=2).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = encoder(images)  # a class token, two registers, four patches
    assert torch.equal(pooled(encoder, "class")(images), tokens[:, 0])
    expected = (tokens[:, 3] + tokens[:, 4] + tokens[:, 5] + tokens[:, 6]) / 4
    torch.testing.assert_close(pooled(encoder, "mean")(images), expected)


def test_a_killed_run_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.common.shards import Prepared
    from tools.frozen import center_crop, features

    for module in (center_crop, features):
        monkeypatch.setattr(module, "TEST_BATCH", 2)
    monkeypatch.setattr(features, "BATCHES_A_SAVE", 2)
    read: list[int] = []
    original = Prepared.__getitem__

    def stop_early(self: Any, index: int) -> Any:
        read.append(index)
        if len(read) == 8:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(Prepared, "__getitem__", stop_early)
    words = words_of(base, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert not (tmp_path / "run/embeddings.npy").exists()
    again = run_tool(main, *words)
    assert again.returncode == 2 and "holds another run" in again.stderr
    assert main([*words, "--resume"]) == 0
    assert read[8:] == list(range(4, NUM)), "two batches were saved"
    mine, whole = (np.load(folder / "embeddings.npy") for folder in (tmp_path / "run", base / "done"))
    np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_killed_after_the_last_image_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.embedding import run

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    words = words_of(base, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_neighbours", killed)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "run/embeddings.npy").read_bytes() == (base / "done/embeddings.npy").read_bytes()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in (base / "done").iterdir()}


def test_a_finished_run_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    before = (base / "done/embeddings.npy").read_bytes()
    done = run_tool(main, *words_of(base, base / "done"), "--resume")
    assert done.returncode == 0 and "is finished: nothing to do" in done.stdout
    other = run_tool(main, *words_of(base, base / "done"), "--resume", "--img-size", "48")
    assert other.returncode == 2 and "--img-size was 32 and is now 48" in other.stderr
    fewer = run_tool(main, *words_of(base, base / "done"), "--resume", "--exclude", "*3.png")
    assert fewer.returncode == 2 and "--data (num_files) was 11 and is now 10" in fewer.stderr
    assert (base / "done/embeddings.npy").read_bytes() == before


def test_unreadable_images_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("a", "c"):
        Image.new("RGB", (40, 40), "red" if name == "a" else "blue").save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "pictures/b.png").write_bytes(b"no picture")
    words = ["--data", tmp_path / "pictures", "--weights", base / "plain.safetensors", "--workers", "0"]
    refused = run_tool(main, *words, "--output", tmp_path / "none")
    assert refused.returncode == 2 and "1 of 3 images (33.3 %) cannot be read" in refused.stderr
    done = run_tool(main, *words, "--output", tmp_path / "out", "--max-bad-fraction", "0.5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/images.txt").read_text() == "a.png\nc.png\n"
    assert "b.png" in (tmp_path / "out/bad_images.txt").read_text()
    assert len(np.load(tmp_path / "out/embeddings.npy")) == 2


def test_images_of_more_than_8_bits_share_one_range(base: Path, tmp_path: Path) -> None:
    """A dark and a bright image of 16 bits: each by its own range would be the same picture."""
    (tmp_path / "pictures").mkdir()
    ramp = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    Image.fromarray(ramp).save(tmp_path / "pictures/dark.png")
    Image.fromarray(ramp * 30).save(tmp_path / "pictures/light.png")
    words = ["--data", tmp_path / "pictures", "--weights", base / "plain.safetensors", "--workers", "0"]
    done = run_tool(main, *words, "--output", tmp_path / "out", "--range", "0,48000")
    assert done.returncode == 0 and "values from 0 to 48000 become 0 to 255" in done.stderr
    vectors = np.load(tmp_path / "out/embeddings.npy")
    for row, factor in enumerate((1, 30)):
        eight_bits = Image.fromarray(np.round(ramp * factor * (255 / 48000)).astype(np.uint8)).convert("RGB")
        with torch.no_grad():
            tokens = load_encoder(base / "plain.safetensors").eval()(PixelNorm()(CenterCrop(32, 1.0)(eight_bits)[None]))
        np.testing.assert_allclose(vectors[row], tokens[0].mean(0).numpy(), atol=0.02)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1
    assert run_tool(main, *words, "--output", tmp_path / "out", "--resume").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pool", "class"], "--pool class: the encoder has no class token: use --pool mean"),
        (["--pool", "max"], "unknown pool 'max'"),
        (["--test-crop", "0"], "must be between 0.01 and 1, got 0"),
        (["--img-size", "0"], "must be at least 1"),
        (["--precision", "16"], "unknown precision '16'"),
        (["--weights", "absent.safetensors"], "weights file absent.safetensors does not exist"),
        (["--data", "absent"], "--data absent does not exist"),
        (["--output", " "], "--output is empty"),
        (["--poool", "mean"], "unknown option '--poool': did you mean '--pool'?"),
    ],
)
def test_mistakes(base: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = run_tool(main, *words_of(base, tmp_path / "out"), *words)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_nearest_against_a_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.embedding import neighbours

    monkeypatch.setattr(neighbours, "AT_ONCE", 7)
    vectors = np.random.default_rng(0).normal(5, 1, (30, 4)).astype(np.float32)
    queries = np.array([3, 29])
    found = nearest(vectors, queries, 6)
    centred = [[float(x) - float(m) for x, m in zip(row, vectors.mean(0), strict=True)] for row in vectors]
    for query, mine in zip(queries, found, strict=True):
        own = centred[query]
        cosine = [
            sum(a * b for a, b in zip(own, row, strict=True)) / math.hypot(*own) / math.hypot(*row) for row in centred
        ]
        order = sorted(range(30), key=lambda i: -cosine[i])
        assert mine.tolist() == [i for i in order if i != query][:6]


def test_the_picture_has_a_row_for_each_image_that_is_looked_at(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "maroon", "blue")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{number}.png")
    images = ImageList(tmp_path, ["0.png", "1.png", "2.png"])
    save_neighbours(np.array([[1, 0], [0.9, 0.1], [-1, 0]], dtype=np.float32), images, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 246 + 6, 30 + 3 * 246)
        # the first row: red, then maroon as the nearest, then blue
        assert [grid.getpixel((6 + 246 * place + 120, 30 + 120)) for place in range(3)] == [
            (255, 0, 0), (128, 0, 0), (0, 0, 255)
        ]  # fmt: skip
    save_neighbours(np.zeros((1, 2), np.float32), ImageList(tmp_path, ["0.png"]), tmp_path / "single.png")
    assert not (tmp_path / "single.png").exists()
