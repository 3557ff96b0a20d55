"""The tokenizer of a recipe: its codebook comes from a seed, from the data or from a file, is kept, and looked at."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pretrain.data.pixel_norm import PixelNorm
from pretrain.data.views import Views, spread_items
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import (
    ImageTokenizer,
    Tokenizer,
    kmeans_codebook,
    normalize_patches,
    random_patches,
    random_projection,
    token_statistics,
)
from pretrain.tokenizers.dalle import DalleTokenizer
from pretrain.training.loader import sample_rng
from pretrain.training.run_folder import write_json
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import TOKENIZER
from splitmask_backbones.vit import patchify

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.safetensors"
STATISTICS_IMAGES = 240


def build_tokenizer(
    recipe: Recipe, views: Views, patch_size: int, folder: Path, workers: int, weights: str | Path | None = None
) -> ImageTokenizer:
    """Returns the recipe's tokenizer; a codebook made from the data is kept in `folder/tokenizer.safetensors`.

    Raises:
        ValueError: fewer patches than the codebook is to have, or a tokenizer whose weights are missing.
    """
    if recipe.tokenizer == "dalle":
        recipe.check_tokenizer_weights(weights)
        return DalleTokenizer(str(weights))
    kept = folder / TOKENIZER_FILE
    if recipe.tokenizer == "random_projection":
        codebook = random_projection(recipe.vocab_size, 3 * patch_size**2, recipe.seed)
    elif kept.exists():
        codebook = load_file(str(kept))["words"]
    else:
        codebook = _codebook_of_data(recipe, views, patch_size, workers)
        write_atomically(kept, save({"words": codebook.contiguous()}))
    return Tokenizer(codebook, recipe.patch_norm)


def _codebook_of_data(recipe: Recipe, views: Views, patch_size: int, workers: int) -> Tensor:
    pixel_norm = PixelNorm()

    def sample(num_images: int, per_image: int) -> Tensor:
        drawn = torch.empty(0)
        for number, item in enumerate(spread_items(views, num_images, workers)):
            patches = patchify(pixel_norm(item["image"][None]), patch_size)[0]
            chosen = sample_rng(recipe.seed, 1, number).permutation(len(patches))[:per_image]
            if not number:  # all crops have as many
                drawn = torch.empty(num_images * len(chosen), patches.shape[1])
            drawn[number * len(chosen) : (number + 1) * len(chosen)] = patches[np.sort(chosen)]
        return drawn

    num_images, per_crop = len(views), (recipe.img_size // patch_size) ** 2
    if recipe.tokenizer == "random_patches":
        # As the tokenizer sees patches: what it takes out of them would only shorten a word that still has it.
        return normalize_patches(random_patches(recipe.vocab_size, num_images, per_crop, sample), recipe.patch_norm)
    return kmeans_codebook(
        recipe.vocab_size,
        num_images,
        per_crop,
        sample,
        recipe.kmeans_patches,
        recipe.kmeans_iterations,
        recipe.seed,
        recipe.patch_norm,
    )


def sample_token_ids(tokenizer: ImageTokenizer, views: Views, patch_size: int, workers: int) -> Tensor:
    """Returns the token ids of crops of the data: int64 `(images, N)`, the same on every process."""
    pixel_norm = PixelNorm()
    items = spread_items(views, min(STATISTICS_IMAGES, len(views)), workers)
    return torch.cat([tokenizer.tokens_of(pixel_norm(item["image"][None]), patch_size) for item in items])


def token_prior(token_ids: Tensor, vocab_size: int) -> Tensor:
    """Returns the log of how often each token id occurs, counted once more than it was seen: float32 `(V,)`.

    The bias that the head begins with (ours). From a bias of zeros the shares have to be learned through the tokens:
    for hundreds of steps all of them move the same way, against the matching loss, until one direction that all
    tokens share says what the bias could have said (`docs/study/ablation.md`).
    """
    counts = torch.bincount(token_ids.flatten(), minlength=vocab_size).double() + 1
    return (counts / counts.sum()).log().float()


def measure_tokenizer(token_ids: Tensor, tokenizer: ImageTokenizer, recipe: Recipe, folder: Path) -> None:
    """Writes how `sample_token_ids` use the codebook to `folder/tokenizer.json`, and logs it."""
    found = token_statistics(token_ids, tokenizer.vocab_size)
    head = {"tokenizer": recipe.tokenizer, "patch_norm": recipe.patch_norm, "vocab_size": tokenizer.vocab_size}
    write_json(folder / TOKENIZER, {**head, **asdict(found)})
    logger.info(
        f"tokenizer {recipe.tokenizer}, patch_norm {recipe.patch_norm}: {found.words_used} of {tokenizer.vocab_size} "
        f"token ids used on {found.num_patches} patches, entropy {found.entropy_bits:.1f} bits, most frequent one "
        f"{100 * found.top_word_share:.0f} %"
    )
    if found.top_word_share > 0.5:
        logger.warning(
            f"one token id covers {100 * found.top_word_share:.0f} % of the patches, so there is little to learn from "
            "inpainting: try --patch-norm pixel_mean or channel_mean, or --tokenizer kmeans"
        )
