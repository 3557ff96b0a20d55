"""From a recipe to the method that is trained: encoder, visual words, losses."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pretrain.augment import PretrainAugment
from pretrain.fabric import main_process_first
from pretrain.loader import sample_rng
from pretrain.recipes import Recipe
from pretrain.run_folder import write_json
from pretrain.sources import ImageList
from pretrain.splitmask import SplitMask
from pretrain.tokenizers import (
    Tokenizer,
    TokenStatistics,
    kmeans_words,
    random_patches,
    random_projection,
    token_statistics,
)
from pretrain.views import SplitViews, first_crops
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.pixels import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.registry import create_encoder
from splitmask_backbones.vit import VisionTransformer, patchify

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.safetensors"
STATISTICS_IMAGES = 240


def build_views(recipe: Recipe, images: ImageList, patch_size: int) -> SplitViews:
    """Returns the data set of the recipe's crops and masks."""
    augment = PretrainAugment(recipe.img_size, scale=(recipe.crop_scale, 1.0), strong=recipe.strong_augment)
    return SplitViews(images, augment, patch_size, recipe.mask, recipe.mask_ratio, recipe.seed)


def build_encoder(recipe: Recipe) -> VisionTransformer:
    """Returns the recipe's encoder, initialised from its seed."""
    torch.manual_seed(recipe.seed)
    return create_encoder(recipe.model, img_size=recipe.img_size, drop_path_rate=recipe.drop_path)


def build_tokenizer(recipe: Recipe, views: SplitViews, patch_size: int, folder: Path, workers: int) -> Tokenizer:
    """Returns the recipe's tokenizer; words made from the data are kept in `folder/tokenizer.safetensors`.

    Raises:
        ValueError: fewer patches than words, or a tokenizer whose weights are missing.
    """
    if recipe.tokenizer == "dalle":
        raise UserError(
            "--tokenizer dalle needs the DALL-E encoder's weights, which this version cannot read: "
            "use random_projection (75.2 against 75.2 in the paper's ablation), random_patches or kmeans"
        )
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


def _words_from_data(recipe: Recipe, views: SplitViews, patch_size: int, workers: int) -> Tensor:
    def sample(num_images: int, per_image: int) -> Tensor:
        rows = []
        for number, image in enumerate(first_crops(views, num_images, workers)):
            patches = patchify(normalized(image), patch_size)[0]
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


def normalized(image: Tensor) -> Tensor:
    """Returns ImageNet-normalised float32 pixels of uint8 `(B, 3, H, W)`."""
    mean, std = (
        torch.tensor(values, device=image.device).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image.float() / 255 - mean) / std


def measure_tokenizer(
    tokenizer: Tokenizer, recipe: Recipe, views: SplitViews, patch_size: int, folder: Path, workers: int
) -> TokenStatistics:
    """Returns words used and entropy on crops of the data, and writes them to `folder/tokenizer.json`."""
    num_images = min(STATISTICS_IMAGES, len(views))
    tokens = [tokenizer(patchify(normalized(image), patch_size)) for image in first_crops(views, num_images, workers)]
    statistics = token_statistics(torch.cat(tokens), tokenizer.vocab_size)
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
            "little to learn from inpainting: try another --patch-norm or --tokenizer kmeans\n"
        )
    return statistics


def build_method(recipe: Recipe, views: SplitViews, folder: Path, workers: int) -> SplitMask:
    """Returns the recipe's method, ready to train.

    Raises:
        ValueError: a method of a later version, or what `build_tokenizer` raises.
    """
    if recipe.method != "splitmask":
        raise UserError(f"--method {recipe.method} is not built yet: use --method splitmask")
    encoder = build_encoder(recipe)
    tokenizer = None
    if recipe.inpaint_weight:
        with main_process_first() as is_main:
            tokenizer = build_tokenizer(recipe, views, encoder.patch_size, folder, workers)
            if is_main:
                measure_tokenizer(tokenizer, recipe, views, encoder.patch_size, folder, workers)
    return SplitMask(
        encoder, tokenizer, recipe.decoder_depth, recipe.inpaint_weight, recipe.match_weight, recipe.temperature
    )
