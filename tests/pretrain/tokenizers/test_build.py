"""From a recipe to its tokenizer: the prior of the head, and what is kept in the folder of a run."""

import math

import pytest
import torch
from torch.utils.data import default_collate

from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.sources import open_source
from pretrain.data.views import spread_items
from pretrain.methods.build import build_method, build_views
from pretrain.recipes import get_recipe
from pretrain.tokenizers.build import build_tokenizer, token_prior
from pretrain.tokenizers.codebook import normalize_patches
from splitmask_backbones.vit import patchify


def test_token_prior_by_hand():
    token_ids = torch.tensor([[3, 3, 0], [3, 1, 3]])
    prior = token_prior(token_ids, 5)  # seen 1, 1, 0, 4, 0 times, and each once more
    assert prior.exp().tolist() == pytest.approx([2 / 11, 2 / 11, 1 / 11, 5 / 11, 1 / 11])
    assert prior.dtype == torch.float32


@pytest.mark.parametrize("method", ["splitmask", "beit"])
def test_the_first_loss_is_that_of_the_best_constant_guess(method, image_folder, tmp_path):
    recipe = get_recipe("tiny").override({"method": method})
    views = build_views(recipe, open_source(image_folder), 16)
    built = build_method(recipe, views, tmp_path, 0, total_steps=20, steps_per_epoch=1)
    batch = default_collate([views[(0, i, 0)] for i in range(12)])
    with torch.no_grad():
        loss, targets = built(batch)["loss_inpaint"].item(), built.observe(batch)["targets"]
    guess = -built.head.bias.detach()[targets].mean().item()
    assert built.head.bias.exp().sum().item() == pytest.approx(1)
    assert loss == pytest.approx(guess, abs=0.2)  # a little from the head's random weights
    assert loss < math.log(built.tokenizer.vocab_size) - 0.5  # that of a guess where all token ids are alike


@pytest.mark.parametrize("patch_norm", ["none", "mean", "channel_mean"])
def test_words_of_random_patches_are_normalised_as_patches_are(patch_norm, image_folder, tmp_path):
    """What is taken out of a patch is not in a word either, so that a word is a unit vector where both are compared."""
    recipe = get_recipe("tiny").override({"tokenizer": "random_patches", "vocab_size": 12, "patch_norm": patch_norm})
    views = build_views(recipe, open_source(image_folder), 16)
    tokenizer = build_tokenizer(recipe, views, 16, tmp_path, 0)
    words = tokenizer.words
    assert torch.equal(tokenizer(words), torch.arange(12))
    torch.testing.assert_close(normalize_patches(words, patch_norm), words, atol=1e-5, rtol=0)


def test_random_patches_lie_anywhere_in_their_crops(image_folder, tmp_path):
    """One of each of 12 images."""
    recipe = get_recipe("tiny").override({"tokenizer": "random_patches", "vocab_size": 12, "patch_norm": "none"})
    views = build_views(recipe, open_source(image_folder), 16)
    words, places = build_tokenizer(recipe, views, 16, tmp_path, 0).words, []
    for word, item in zip(words, spread_items(views, 12, 0), strict=True):
        patches = torch.nn.functional.normalize(patchify(PixelNorm()(item["image"][None]), 16)[0], dim=1)
        places.append(int((patches @ word).argmax()))
        torch.testing.assert_close(patches[places[-1]], word)
    assert len(set(places)) > 4
