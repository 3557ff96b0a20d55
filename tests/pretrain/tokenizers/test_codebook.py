"""Codebooks: argmax over unit vectors, patch normalisation, and the errors for small data."""

import pytest
import torch

from pretrain.data.pixel_norm import PixelNorm
from pretrain.tokenizers import codebook as module
from pretrain.tokenizers.codebook import (
    Tokenizer,
    better_of_two,
    kmeans_codebook,
    nearest,
    normalize_patches,
    random_patches,
    random_projection,
    token_statistics,
)
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.vit import patchify


def test_token_is_the_argmax_over_unit_vectors():
    tokenizer = Tokenizer(torch.tensor([[10.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]))
    patches = torch.tensor([[[1.0, 0.9, 0.0], [3.0, 0.1, 5.0], [-1.0, 2.0, 0.0]]])
    assert tokenizer(patches).tolist() == [[2, 0, 1]]  # without unit vectors 0 would win the first


def test_normalisation_by_hand():
    patches = torch.arange(12.0).reshape(1, 12) ** 1.5
    assert normalize_patches(patches, "mean").mean().abs() < 1e-5
    by_channel = normalize_patches(patches, "channel_mean").reshape(3, 4)
    torch.testing.assert_close(by_channel, patches.reshape(3, 4) - patches.reshape(3, 4).mean(1, keepdim=True))
    pixels = torch.rand(2, 3, 4, 4)  # two images of a patch
    pixels[1] = pixels[1, :1]  # the second is grey
    found = normalize_patches(patchify(PixelNorm()(pixels * 255), 4), "pixel_mean")[:, 0]
    torch.testing.assert_close(found, (pixels - pixels.mean((1, 2, 3), keepdim=True)).flatten(1))
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        normalize_patches(patches, "maen")


def test_random_projection_is_uniform_and_seeded():
    codebook = random_projection(500, 768, 3)
    assert torch.equal(codebook, random_projection(500, 768, 3))
    assert not torch.equal(codebook, random_projection(500, 768, 4))
    assert codebook.abs().max() <= 1
    assert codebook.mean().abs() < 0.01
    assert codebook.std() == pytest.approx(3**-0.5, rel=0.01)  # of the uniform distribution on (-1, 1)
    torch.testing.assert_close(Tokenizer(codebook).words.norm(dim=1), torch.ones(500))


def sampler(num_patches, dim=12):
    data = torch.randn(50, num_patches, dim, generator=torch.Generator().manual_seed(0))

    def sample(num_images, per_image):
        return data[:num_images, :per_image].flatten(0, 1)

    return sample, data


def test_random_patches_come_from_different_images():
    sample, data = sampler(16)
    assert torch.equal(random_patches(40, 50, 16, sample), data[:40, 0])
    assert random_patches(120, 50, 16, sample).unique(dim=0).shape[0] == 120
    # 75 of 50 images: one of each before a second one of any.
    words = random_patches(75, 50, 16, sample)
    for image in range(50):
        from_it = sum(bool((word == data[image]).all(dim=1).any()) for word in words)
        assert from_it == (2 if image < 25 else 1)


@pytest.mark.parametrize("kind", ["pixel_mean", "channel_mean"])
def test_what_rounding_leaves_of_flat_patches_is_nothing(kind):
    mean, std = (torch.tensor(values)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    greys = ((torch.linspace(0, 1, 52)[:, None, None] - mean) / std).expand(52, 3, 64).flatten(1)
    assert not normalize_patches(greys, kind).any()
    assert len(Tokenizer(torch.randn(8, 192), kind)(greys).unique()) == 1
    with pytest.raises(ValueError, match="patches that are not flat: 0 patches for a codebook of 4"):
        kmeans_codebook(4, 52, 1, lambda n, k: greys[: n * k].clone(), 1000, 2, 0, kind)
    faint = greys + 1e-3 * torch.randn_like(greys)  # a quarter of a grey level
    assert normalize_patches(faint, kind).norm(dim=1).min() > 1e-3


def test_kmeans_takes_any_seed():
    patches = torch.randn(64, 12)
    assert len(kmeans_codebook(4, 64, 1, lambda n, k: patches.clone(), 1000, 2, 5_000_000_000, "none")) == 4


def test_a_centroid_is_the_mean_of_unit_vectors():
    """Three patches along one axis and one thirty times as bright along another."""
    patches = torch.zeros(4, 12)
    patches[:3, 0], patches[3, 1] = 1, 30
    word = kmeans_codebook(1, 4, 1, lambda n, k: patches.clone(), 1000, 2, 0, "none")[0]
    expected = torch.tensor([3.0, 1.0] + 10 * [0.0]) / 10**0.5
    torch.testing.assert_close(torch.nn.functional.normalize(word, dim=0), expected)


def test_kmeans_finds_directions(monkeypatch):
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(6, 12), dim=1)
    patches = (centres.repeat_interleave(30, 0) + 0.02 * torch.randn(180, 12)) * torch.rand(180, 1).add(0.5)
    patches = patches[torch.randperm(180)]
    lines = []
    monkeypatch.setattr(module.logger, "info", lambda *arguments: lines.append(arguments))
    codebook = kmeans_codebook(6, 18, 10, lambda n, k: patches[: n * k].clone(), 1000, 25, 1, "none")
    best = (torch.nn.functional.normalize(codebook, dim=1) @ centres.T).max(1).values
    assert best.mean() > 0.95
    assert [line[1:3] for line in lines] == [(i, 25) for i in range(1, 26)] and lines[-1][3] > 0.9
    assert torch.equal(codebook, kmeans_codebook(6, 18, 10, lambda n, k: patches[: n * k].clone(), 1000, 25, 1, "none"))


def test_fewer_patches_than_the_codebook_has_names_both():
    sample, _ = sampler(4)
    with pytest.raises(ValueError, match=r"50 images x 4 patches = 200 patches for a codebook of 8192"):
        random_patches(8192, 50, 4, sample)
    with pytest.raises(ValueError, match=r"200 patches for a codebook of 8192"):
        kmeans_codebook(8192, 50, 4, sample, 1000, 2, 0, "none")


def test_statistics_by_hand():
    statistics = token_statistics(torch.tensor([[0, 0, 1, 3]]), 8)
    assert (statistics.num_patches, statistics.words_used, statistics.top_word_share) == (4, 3, 0.5)
    assert statistics.entropy_bits == pytest.approx(1.5)
    assert token_statistics(torch.zeros(5, dtype=torch.int64), 8).entropy_bits == 0


def rounded_to_tf32(x):
    """10 bits of mantissa, to the nearest even, as a GPU takes the factors of a TF32 product."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (((bits >> 13) & 1) + 0xFFF)) & ~0x1FFF).view(torch.float32)


def test_a_rounded_product_gives_the_same_token_ids_once_two_are_compared():
    generator = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(2048, 48, generator=generator), dim=1)
    # Half of them in the middle between two vectors: near ties.
    pairs = torch.randint(2048, (2, 2000), generator=generator)
    rows = words[pairs[0]] + words[pairs[1]] + 0.002 * torch.randn(2000, 48, generator=generator)
    rows = torch.cat([rows, torch.randn(2000, 48, generator=generator)])
    exact = (rows @ words.T).argmax(dim=1)
    scores = rounded_to_tf32(rows) @ rounded_to_tf32(words).T
    assert (scores.argmax(dim=1) != exact).sum() > 5
    assert (better_of_two(scores, rows, words) == exact).all()
    assert (nearest(rows, words) == exact).all()


def test_of_two_equals_the_first_counts():
    words = torch.eye(3)[[0, 1, 1, 2]]
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert better_of_two(rows @ words.T, rows, words).tolist() == [1, 3]


@pytest.mark.gpu
def test_token_ids_of_a_gpu_are_those_of_a_cpu():
    generator = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(8192, 768, generator=generator), dim=1)
    rows = torch.randn(4096, 768, generator=generator)
    assert (nearest(rows.cuda(), words.cuda()).cpu() != nearest(rows, words)).float().mean() < 1e-3
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("patch_norm", ["mean", "pixel_mean", "channel_mean"])
def test_patches_are_normalised_before_they_get_their_token_ids(patch_norm):
    """Bright patches: with their mean most of them would get others."""
    torch.manual_seed(0)
    words, patches = random_projection(64, 48, 0), torch.randn(200, 48) + 2
    found = Tokenizer(words, patch_norm)(patches)
    unit = torch.nn.functional.normalize(words, dim=1)
    assert torch.equal(found, (normalize_patches(patches, patch_norm) @ unit.T).argmax(dim=1))
    assert (found != Tokenizer(words)(patches)).float().mean() > 0.3


@pytest.mark.parametrize("patch_norm", ["mean", "channel_mean"])
def test_kmeans_clusters_what_the_tokenizer_compares(patch_norm):
    """What is taken out of a patch is in no centroid, which is a mean of such patches; all images are drawn from."""
    torch.manual_seed(0)
    patches, asked = torch.randn(50, 16, 12) + 5, []

    def sample(num_images, per_image):
        asked.append((num_images, per_image))
        return patches[:num_images, :per_image].flatten(0, 1)

    codebook = kmeans_codebook(6, 50, 16, sample, 100, 3, 1, patch_norm)
    assert asked == [(50, 2)]
    torch.testing.assert_close(normalize_patches(codebook, patch_norm), codebook, atol=1e-5, rtol=0)
