"""A look at what a run has learned: the two halves of an image, and the token ids that each half inpaints."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pretrain.data.augment import PretrainAugment
from pretrain.data.masking import split_halves
from pretrain.data.sources import ImageList
from pretrain.data.value_range import range_in
from pretrain.methods.splitmask import SplitMask, complement
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import ImageTokenizer, Tokenizer
from pretrain.tokenizers.dalle import DalleTokenizer
from pretrain.training.checkpoints import newest_checkpoint
from pretrain.training.loader import sample_rng
from pretrain.training.run_folder import read_object
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import CHECKPOINTS, CONFIG
from splitmask_backbones.vit import VisionTransformer, gather_tokens, patchify


def load_method(run_dir: Path) -> tuple[Recipe, SplitMask]:
    """Returns the recipe and the method of a run, with the weights of its newest checkpoint.

    Raises:
        ValueError: the folder holds no run, or no checkpoint with inpainting.
    """
    if not (run_dir / CONFIG).exists():
        raise UserError(f"{run_dir} holds no pre-training run: name the --output of tools/pretrain.py")
    config = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
    recipe = Recipe(**config["values"])
    found = newest_checkpoint(run_dir / CHECKPOINTS)
    if found is None or "model.head.weight" not in found[1]:
        raise UserError(f"{run_dir} holds no checkpoint of a run with inpainting: nothing to decode")
    state = {key.removeprefix("model."): value for key, value in found[1].items() if key.startswith("model.")}
    encoder = VisionTransformer(**config["encoder"])
    tokenizer: ImageTokenizer
    if recipe.tokenizer == "dalle":
        tokenizer = DalleTokenizer(config["free"]["tokenizer_weights"])
    else:
        tokenizer = Tokenizer(state["tokenizer.words"], recipe.patch_norm)
    method = SplitMask(encoder, tokenizer, recipe.decoder_depth, recipe.inpaint_weight, recipe.match_weight)
    method.load_state_dict(state)
    return recipe, method.eval()


def unpatchify(patches: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """Returns the image of patches in `patchify` order: `(N, 3 * p * p) -> (3, H, W)`."""
    height, width = grid_size
    blocks = patches.reshape(height, width, 3, patch_size, patch_size)
    return blocks.permute(2, 0, 3, 1, 4).reshape(3, height * patch_size, width * patch_size)


def average_patches(patches: Tensor, token_ids: Tensor, vocab_size: int) -> Tensor:
    """Returns the mean patch of each token id: `(M, D)`, int64 `(M,)` -> `(V, D)`; gray where there is none."""
    sums = torch.zeros(vocab_size, patches.shape[1]).index_add_(0, token_ids, patches)
    counts = torch.bincount(token_ids, minlength=vocab_size)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), 0.5)


@torch.no_grad()
def save_token_picture(
    run_dir: str | Path, images: Sequence[str | Path], out_path: str | Path, num_rows: int = 6
) -> None:
    """Writes a picture with a row per image: image, its token ids, what A sees and inpaints, what B sees and inpaints.

    A token id is drawn as the mean of the patches of these images that have it; inpainted patches are framed by the
    ones that the branch has seen.

    Args:
        run_dir: output folder of a pre-training run.
        images: files; all serve to draw the token ids, the first `num_rows` are shown.
        out_path: PNG.
        num_rows: rows of the picture.
    """
    from matplotlib.figure import Figure  # and no pyplot, whose backend belongs to whoever draws in the same process

    recipe, method = load_method(Path(run_dir))
    if method.tokenizer is None or method.head is None:
        raise UserError(f"{run_dir} was trained without inpainting: there are no token ids to show")
    patch_size = method.encoder.patch_size
    augment = PretrainAugment(recipe.img_size, scale=(0.8, 1.0), flip=0.0)
    value_range = range_in(read_object(Path(run_dir) / CONFIG))
    source = ImageList(Path(), [str(path) for path in images], value_range=value_range)
    crops = torch.stack([augment(source.read(i), sample_rng(0, 0, i)) for i in range(len(source))])
    pixels = patchify(crops.float() / 255, patch_size)
    token_ids = method.tokenizer.tokens_of(method.normalize(crops), patch_size)
    mean_patches = average_patches(pixels.flatten(0, 1), token_ids.flatten(), method.tokenizer.vocab_size)

    num_rows, grid_size = min(num_rows, len(crops)), method.encoder.grid_size
    titles = ("image", "as token ids", "A sees", "inpainted from A", "B sees", "inpainted from B")
    figure = Figure(figsize=(13, 2.25 * num_rows))
    axes = figure.subplots(num_rows, 6, squeeze=False)
    for row in range(num_rows):
        shown = [pixels[row], mean_patches[token_ids[row]]]
        for ids in split_halves(recipe.mask, grid_size, sample_rng(1, 0, row), recipe.mask_ratio):
            seen = torch.from_numpy(ids)[None]
            decoded = method.decode(method.normalize(crops[row : row + 1]), seen)
            hidden = complement(seen, decoded.shape[1])
            predicted = method.head(gather_tokens(decoded, hidden)).argmax(-1)[0]
            half = torch.ones_like(pixels[row])
            half[seen[0]] = pixels[row][seen[0]]
            inpainted = half.clone()
            inpainted[hidden[0]] = mean_patches[predicted]
            shown += [half, inpainted]
        for axis, patches, title in zip(axes[row], shown, titles, strict=True):
            axis.imshow(_to_picture(unpatchify(patches, grid_size, patch_size)))
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=11)
    figure.tight_layout(pad=0.4)
    figure.savefig(out_path, dpi=110)


def _to_picture(image: Tensor) -> Image.Image:
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array))
