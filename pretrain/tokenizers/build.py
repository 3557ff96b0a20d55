"""The visual words of a recipe: made from a seed, from the data or from a file, kept, and looked at."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.views import CropViews, first_crops
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import (
    ImageTokenizer,
    Tokenizer,
    TokenStatistics,
    kmeans_words,
    random_patches,
    random_projection,
    token_statistics,
)
from pretrain.tokenizers.dalle import DalleTokenizer
from pretrain.training.loader import sample_rng
from pretrain.training.run_folder import write_json
from splitmask_backbones.files import write_atomically
from splitmask_backbones.vit import patchify

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.safetensors"
STATISTICS_IMAGES = 240


def build_tokenizer(
    recipe: Recipe, views: CropViews, patch_size: int, folder: Path, workers: int, weights: str | Path | None = None
) -> ImageTokenizer:
    """Returns the recipe's tokenizer; words made from the data are kept in `folder/tokenizer.safetensors`.

    Raises:
        ValueError: fewer patches than words, or a tokenizer whose weights are missing.
    """
    if recipe.tokenizer == "dalle":
        recipe.check_tokenizer_weights(weights)
        return DalleTokenizer(str(weights))
    patch_dim = 3 * patch_size**2
    kept = folder / TOKENIZER_FILE
    if recipe.tokenizer == "random_projection":
        words = random_projection(recipe.vocab_size, patch_dim, recipe.seed)
    elif kept.exists():
        words = load_file(str(kept))["words"]
    else:
        words = _words_from_data(recipe, views, patch_size, workers)
        write_atomically(kept, save({"words": words.contiguous()}))
    return Tokenizer(words, recipe.patch_norm)


def _words_from_data(recipe: Recipe, views: CropViews, patch_size: int, workers: int) -> Tensor:
    pixel_norm = PixelNorm()

    def sample(num_images: int, per_image: int) -> Tensor:
        rows = []
        for number, image in enumerate(first_crops(views, num_images, workers)):
            patches = patchify(pixel_norm(image), patch_size)[0]
            chosen = sample_rng(recipe.seed, 1, number).permutation(len(patches))[:per_image]
            rows.append(patches[np.sort(chosen)])
        return torch.cat(rows)

    num_images, per_crop = len(views), views.grid_size[0] * views.grid_size[1]
    if recipe.tokenizer == "random_patches":
        return random_patches(recipe.vocab_size, num_images, per_crop, sample)

    def report(iteration: int, cosine: float) -> None:
        logger.info("k-means iteration %d/%d: mean cosine %.4f", iteration, recipe.kmeans_iterations, cosine)

    return kmeans_words(
        recipe.vocab_size,
        num_images,
        per_crop,
        sample,
        recipe.kmeans_patches,
        recipe.kmeans_iterations,
        recipe.seed,
        recipe.patch_norm,
        report,
    )


def sample_words(tokenizer: ImageTokenizer, views: CropViews, patch_size: int, workers: int) -> Tensor:
    """Returns the words of crops of the data: int64 `(images, N)`, the same on every process."""
    num_images, pixel_norm = min(STATISTICS_IMAGES, len(views)), PixelNorm()
    crops = first_crops(views, num_images, workers)
    return torch.cat([tokenizer.tokens_of(pixel_norm(image), patch_size) for image in crops])


def word_prior(words: Tensor, vocab_size: int) -> Tensor:
    """Returns the log of how often each word occurs, each counted once more than it was seen: float32 `(V,)`.

    The bias that the head begins with (ours). From a bias of zeros the shares have to be learned through the tokens:
    for hundreds of updates all of them move the same way, against the matching loss, until one direction that all
    tokens share says what the bias could have said (`docs/study/README.md`).
    """
    counts = torch.bincount(words.flatten(), minlength=vocab_size).double() + 1
    return (counts / counts.sum()).log().float()


def measure_tokenizer(words: Tensor, tokenizer: ImageTokenizer, recipe: Recipe, folder: Path) -> TokenStatistics:
    """Returns words used and entropy of `sample_words`, and writes them to `folder/tokenizer.json`."""
    statistics = token_statistics(words, tokenizer.vocab_size)
    values = {
        "tokenizer": recipe.tokenizer,
        "patch_norm": recipe.patch_norm,
        "vocab_size": tokenizer.vocab_size,
        **statistics.as_dict(),
    }
    write_json(folder / "tokenizer.json", values)
    logger.info(
        "tokenizer %s, patch_norm %s: %d of %d words used on %d patches, entropy %.1f bits, top word %.0f %%",
        recipe.tokenizer,
        recipe.patch_norm,
        statistics.words_used,
        tokenizer.vocab_size,
        statistics.num_patches,
        statistics.entropy_bits,
        100 * statistics.top_word_share,
    )
    if statistics.top_word_share > 0.5:
        sys.stderr.write(
            f"warning: one visual word covers {100 * statistics.top_word_share:.0f} % of the patches, so there is "
            "little to learn from inpainting: try --patch-norm pixel_mean or channel_mean, or --tokenizer kmeans\n"
        )
    return statistics
