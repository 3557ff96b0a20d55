"""How an encoder begins where it does not with the truncated normals that it is made with."""

import math
from pathlib import Path
from typing import Any

import torch

from pretrain.recipes import Recipe
from splitmask_backbones.checkpoints import load_encoder, read_encoder_file
from splitmask_backbones.errors import UserError
from splitmask_backbones.position import sincos_pos_embed
from splitmask_backbones.registry import named_sizes
from splitmask_backbones.vit import VisionTransformer


@torch.no_grad()
def rescale_residuals(encoder: VisionTransformer) -> None:
    """Divides the last matrix of both residual branches of block l (from 1) by `sqrt(2 l)`, in place.

    BEiT Sec. 2.5, and `fix_init_weight` of its code: what a block adds then shrinks with its depth, and the sum over
    all blocks grows with the root of the logarithm of their number and not of their number.
    """
    blocks: Any = encoder.blocks
    for number, block in enumerate(blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight /= math.sqrt(2 * number)


@torch.no_grad()
def begin_with_sincos(encoder: VisionTransformer) -> None:
    """Fills the learned table of the patches with MAE's sines and cosines, in place; it is still learned.

    Their RMS is 0.71, that of the patch embedding at the start 0.70; of a truncated normal it is 0.02, and moves to
    0.023 in some hundred steps. Prefix tokens have no place: their rows stay as they are.

    Raises:
        ValueError: the encoder has no learned positions.
    """
    if encoder.pos_embed is None:
        raise UserError(f"positions={encoder.positions!r} are not learned: only learned ones begin as sincos")
    prefix = encoder.num_prefix_tokens
    encoder.pos_embed[:, prefix:] = sincos_pos_embed(encoder.grid_size, encoder.embed_dim)


def encoder_from(path: Path, recipe: Recipe) -> VisionTransformer:
    """Returns the encoder of a file as the recipe trains on from it: positions at the grid of its crops.

    Prefix tokens go, because a method of patches has no use for them. DINO keeps a class token, and so does an encoder
    with BEiT's bias, whose table has rows for it.

    Raises:
        ValueError: it is of another size than the recipe's model, or cannot be trained by its method.
    """
    file = read_encoder_file(path)
    is_biased = file.config["relative_position_bias"] != "none"
    has_token = recipe.method == "dino" or is_biased and file.config["use_class_token"]
    sizes = recipe.encoder_sizes
    if any(file.config[key] != size for key, size in sizes.items()):
        names = named_sizes(file.config)
        if names is None:
            raise UserError(
                "--init: the encoder has the patch size and heads of no --model, so it cannot be trained on"
            )
        options = " ".join(f"--{key.replace('_', '-')} {size}" for key, size in names.items())
        options = options.replace("--encoder", "--model")
        raise UserError(f"--init: the encoder is not {recipe.encoder_title}: use {options}, the size of the file")
    if recipe.method == "splitmask" and (file.config["use_rel_pos"] or is_biased):
        raise UserError(
            "--init: the encoder has relative positions, and SplitMask's encoder sees half of the patches: use "
            "--method beit, or an encoder without them"
        )
    if has_token and not file.config["use_class_token"]:
        raise UserError("--init: the encoder has no class token, which DINO learns with: use another --method")
    encoder = load_encoder(
        path,
        img_size=recipe.img_size,
        drop_path_rate=recipe.drop_path,
        use_class_token=has_token,
        num_registers=0,
        window_size=0,
        window_block_indexes=(),
        final_norm=True,
        out_indices=(sizes["depth"] - 1,),
    )
    return encoder
