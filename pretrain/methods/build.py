"""From a recipe to what is trained: views of the images, encoder, method."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from pretrain.data.augment import PretrainAugment
from pretrain.data.masking import beit_mask, split_halves
from pretrain.data.multicrop import MultiCrop
from pretrain.data.sources import ImageList
from pretrain.data.views import CropAndPatches, Views
from pretrain.methods.base import Method
from pretrain.methods.beit import Beit
from pretrain.methods.initialization import begin_with_sincos, encoder_from, rescale_residuals
from pretrain.methods.splitmask import SplitMask
from pretrain.recipes import Recipe
from pretrain.tokenizers.build import build_tokenizer, measure_tokenizer, sample_token_ids, token_prior
from pretrain.tokenizers.codebook import ImageTokenizer, Tokenizer, random_projection
from pretrain.tokenizers.dalle import DalleTokenizer
from pretrain.training.cores import workers_alone
from pretrain.training.distributed import main_process_first
from pretrain.training.optimizer import adamw
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.registry import create_encoder
from splitmask_backbones.vit import VisionTransformer


def build_views(recipe: Recipe, images: ImageList, patch_size: int) -> Views:
    """Returns the data set of what the recipe's method sees of each image."""
    if recipe.method == "dino":
        crops = MultiCrop(recipe.img_size, recipe.crop_scale, recipe.local_crops, patch_size)
        return Views(images, recipe.seed, crops)
    scale = recipe.crop_scale, recipe.crop_scale_max
    augment = PretrainAugment(recipe.img_size, scale=scale, strong=recipe.strong_augment)
    patch_ids = _masked if recipe.method == "beit" else partial(_halves, recipe.mask, recipe.mask_ratio)
    reduced_side = recipe.img_size if recipe.reduced_jpeg else None
    return Views(images, recipe.seed, CropAndPatches(augment, patch_size, patch_ids), reduced_side)


def _masked(grid_size: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"ids_masked": beit_mask(grid_size, rng)}


def _halves(mask: str, ratio: float, grid_size: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    ids_a, ids_b = split_halves(mask, grid_size, rng, ratio)
    return {"ids_a": ids_a, "ids_b": ids_b}


def build_encoder(recipe: Recipe, init: Path | None = None) -> VisionTransformer:
    """Returns the recipe's encoder, initialised from its seed. DINO's has the class token that DINO learns with.

    Args:
        init: an encoder file whose weights it begins with instead.
    """
    torch.manual_seed(recipe.seed)
    if init is not None:
        encoder = encoder_from(init, recipe)
    else:
        extra = {"use_class_token": True, "position_resize": "plain"} if recipe.method == "dino" else {}
        arguments = {"img_size": recipe.img_size, "drop_path_rate": recipe.drop_path, **extra}
        encoder = create_encoder(recipe.model, **recipe.encoder_sizes, **arguments)
        if recipe.position_init == "sincos":
            begin_with_sincos(encoder)
        if recipe.rescale_residuals:
            rescale_residuals(encoder)
    encoder.patch_embed.requires_grad_(not recipe.freeze_patch_embed)
    return encoder


def build_method(
    recipe: Recipe,
    views: Views,
    folder: Path,
    workers: int,
    tokenizer_weights: str | Path | None = None,
    init: Path | None = None,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> Method:
    """Returns the recipe's method, ready to train.

    Args:
        recipe: all values.
        views: of `build_views`.
        folder: keeps a codebook that is made from the data.
        workers: data processes for that.
        tokenizer_weights: of DALL-E's encoder.
        init: as of `build_encoder`.
        total_steps, steps_per_epoch: for methods with schedules of their own (DINO).

    Raises:
        ValueError: what `build_tokenizer` raises.
    """
    encoder = build_encoder(recipe, init)
    tokenizer: ImageTokenizer | None = None
    prior: torch.Tensor | None = None
    if recipe.uses_tokens:
        with main_process_first() as is_main:
            alone = workers_alone(workers) if is_main else workers
            tokenizer = build_tokenizer(recipe, views, encoder.patch_size, folder, alone, tokenizer_weights)
        token_ids = sample_token_ids(tokenizer, views, encoder.patch_size, workers)
        prior = token_prior(token_ids, tokenizer.vocab_size)
        if is_main:
            measure_tokenizer(token_ids, tokenizer, recipe, folder)
    return _assembled(recipe, encoder, tokenizer, prior, init, total_steps, steps_per_epoch)


def build_sample(recipe: Recipe, tokenizer_weights: str | Path | None = None, init: Path | None = None) -> Method:
    """Returns a method that takes the time and the memory of the recipe's, without a look at the data.

    Args:
        recipe: all values.
        tokenizer_weights: of DALL-E's encoder.
        init: as of `build_encoder`.
    """
    encoder = build_encoder(recipe, init)
    tokenizer: ImageTokenizer | None = None
    if recipe.uses_tokens and recipe.tokenizer == "dalle":
        recipe.check_tokenizer_weights(tokenizer_weights)
        tokenizer = DalleTokenizer(str(tokenizer_weights))
    elif recipe.uses_tokens:
        words = random_projection(recipe.vocab_size, 3 * encoder.patch_size**2, recipe.seed)
        tokenizer = Tokenizer(words, recipe.patch_norm)
    return _assembled(recipe, encoder, tokenizer, None, init, total_steps=1, steps_per_epoch=1)


def build_optimizer(method: Method, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """Returns the recipe's optimizer of a method that will lie on `device`; it tells the method before each step."""
    groups = param_groups(method, recipe.peak_lr, recipe.weight_decay)
    optimizer = adamw(groups, device, beta2=recipe.beta2, in_graph=recipe.cuda_graph)
    optimizer.register_step_pre_hook(lambda *_: method.before_step())
    return optimizer


def _assembled(
    recipe: Recipe,
    encoder: VisionTransformer,
    tokenizer: ImageTokenizer | None,
    prior: torch.Tensor | None,
    init: Path | None,
    total_steps: int,
    steps_per_epoch: int,
) -> Method:
    if recipe.method == "dino":
        from pretrain.methods.dino import Dino

        return Dino(
            encoder,
            build_encoder(recipe, init),
            num_outputs=recipe.dino_outputs,
            momentum=recipe.teacher_momentum,
            temperature=recipe.teacher_temperature,
            warm_steps=round(recipe.teacher_warmup * total_steps),
            total_steps=total_steps,
            frozen_steps=steps_per_epoch,
        )
    if recipe.method == "beit":
        assert tokenizer is not None
        return Beit(encoder, tokenizer, prior)
    return SplitMask(
        encoder,
        tokenizer,
        recipe.decoder_depth,
        recipe.inpaint_weight,
        recipe.match_weight,
        recipe.temperature,
        recipe.branch_jitter,
        prior,
    )
