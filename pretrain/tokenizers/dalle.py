"""DALL-E's token ids, for the rows that BEiT has with them: the published encoder as a tokenizer.

The network is Transformers' `FlavaImageCodebook`, which is that encoder. Its file is read as tensors only. OpenAI
published a pickled module, which runs code when it is opened and is refused; `HOW_TO_CONVERT` has the way round it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.data.pixel_norm import PixelNorm
from splitmask_backbones.errors import UserError

STRIDE = 8
"""Pixels between two token ids of the encoder."""

RANGE_MARGIN = 0.1
"""Pixels in [0, 1] become [0.1, 0.9] in front of the encoder (DALL-E's `map_pixels`)."""

CHUNK = 32
"""Images that go through the encoder together."""

HOW_TO_CONVERT = (
    "give its weights as safetensors; with OpenAI's package DALL-E installed, and a file that you trust: "
    "safetensors.torch.save_file(torch.load('encoder.pkl', weights_only=False).state_dict(), 'dalle.safetensors')"
)


class DalleTokenizer(nn.Module):
    """Token id of a patch = that of DALL-E's encoder at its place.

    The crop is resized so that a patch is 8 x 8 pixels (224 -> 112, as in BEiT). BEiT resizes the image's own pixels
    for this, with Lanczos; here it is the crop that the method sees, bicubic and antialiased: ours.

    The encoder is no part of the state: a checkpoint of a run does not carry its 200 MB.

    Args:
        path: safetensors of the published encoder, in OpenAI's names (`blocks.input.w`) or Transformers'
            (`blocks.input.weight`).

    Raises:
        ValueError: the file is missing, not safetensors, or not that encoder; or Transformers is not installed.
    """

    _encoder: Any

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        # Not a submodule; `_apply` takes it along to other devices.
        object.__setattr__(self, "_encoder", _build(_read(Path(path)), path))
        self.pixel_norm = PixelNorm()

    @property
    def vocab_size(self) -> int:
        """V, 8192 in the published file."""
        return self._encoder.vocab_size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DalleTokenizer:
        self._encoder._apply(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Returns `(B, V, H / 8, W / 8)` of pixels `(B, 3, H, W)` in [0, 1]."""
        # Near-ties must not depend on the precision: neither that of the run nor TF32, cuDNN's own choice.
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.autocast(pixels.device.type, enabled=False):
                return self._encoder(((1 - 2 * RANGE_MARGIN) * pixels + RANGE_MARGIN).float())
        finally:
            torch.backends.cudnn.allow_tf32 = before

    @torch.no_grad()
    def tokens_of(self, images: Tensor, patch_size: int) -> Tensor:
        """Returns int64 `(B, N)` in `[0, V)`, patches row by row, of ImageNet-normalised `(B, 3, H, W)`."""
        pixels = self.pixel_norm.undo(images)
        size = [side // patch_size * STRIDE for side in images.shape[2:]]
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return torch.cat([self.logits(part).argmax(dim=1).flatten(1) for part in pixels.split(CHUNK)])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"--tokenizer-weights {path} does not exist or is not a file: {HOW_TO_CONVERT}")
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError):
        raise UserError(f"--tokenizer-weights {path} is not a safetensors file: {HOW_TO_CONVERT}") from None
    return {_transformers_name(name): value for name, value in tensors.items()}


def _transformers_name(name: str) -> str:
    for pattern, replacement in (
        (r"^image_codebook\.", ""),
        (r"\.w$", ".weight"),
        (r"\.b$", ".bias"),
        (r"^blocks\.(group_\d)\.block_", r"blocks.\1.group.block_"),
        (r"\.res_path\.conv_", ".res_path.path.conv_"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _build(tensors: dict[str, Tensor], path: str | Path) -> nn.Module:
    try:
        from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
    except ImportError as error:
        raise UserError(f"--tokenizer dalle needs Transformers ({error}): install the extra 'convert'") from None
    try:
        hidden, vocab = tensors["blocks.input.weight"].shape[0], tensors["blocks.output.conv.weight"].shape[0]
        blocks = {name.split(".")[3] for name in tensors if name.startswith("blocks.group_1.group.")}
        config = FlavaImageCodebookConfig(hidden_size=hidden, vocab_size=vocab, num_blocks_per_group=len(blocks))
        encoder = FlavaImageCodebook(config)
        encoder.load_state_dict(tensors, strict=True)
    except (KeyError, RuntimeError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--tokenizer-weights {path} is not DALL-E's encoder ({reason}): {HOW_TO_CONVERT}") from None
    return encoder.float().eval().requires_grad_(False)
