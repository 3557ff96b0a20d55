"""BEiT: mask tokens in the encoder, token ids of the masked patches (Bao et al. 2021, Sec. 2); the baseline."""

import torch
from torch import Tensor, nn

from pretrain.data.pixel_norm import PixelNorm
from pretrain.methods.base import Method
from pretrain.methods.losses import TokenHead, token_accuracy
from pretrain.tokenizers.codebook import ImageTokenizer
from splitmask_backbones.vit import VisionTransformer, gather_tokens


class Beit(Method):
    """The method as a module: `forward(batch)` returns the losses as named 0-dim tensors.

    All patches enter the encoder; the embeddings of masked ones are replaced by a learned token before positions are
    added. There is no decoder: a linear head reads the encoder's output. The mask token stays with the method.
    As in SplitMask's comparison the encoder is a plain ViT, without BEiT's relative positions and LayerScale.

    Args:
        encoder: with a final norm, `img_size` that of the crops.
        tokenizer: gives the target token ids.
        prior: `(V,)` of `token_prior`, the bias that the head begins with; zeros without.
    """

    def __init__(self, encoder: VisionTransformer, tokenizer: ImageTokenizer, prior: Tensor | None = None) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = TokenHead(encoder.embed_dim, tokenizer.vocab_size, prior)
        self.normalize = PixelNorm()

    def encode(self, image: Tensor, ids_masked: Tensor) -> Tensor:
        """Returns the patches' tokens `(B, N, C)` of normalised `(B, 3, H, W)` with some masked, int64 `(B, K)`."""
        encoder = self.encoder
        tokens, grid_size = encoder.embed(image)
        num_prefix_tokens, num_patches = encoder.num_prefix_tokens, tokens.shape[1] - encoder.num_prefix_tokens
        hidden: Tensor = self.mask_token
        table = encoder.position_table(grid_size)
        if table is not None:
            hidden = hidden + table[:, num_prefix_tokens:]
        masked = torch.zeros(ids_masked.shape[0], num_patches, dtype=torch.bool, device=tokens.device)
        masked.scatter_(1, ids_masked, True)
        patches = torch.where(masked[..., None], hidden, tokens[:, num_prefix_tokens:])
        tokens = torch.cat([tokens[:, :num_prefix_tokens], patches], dim=1)
        return encoder.encode(tokens, grid_size)[:, num_prefix_tokens:]

    def _inpaint(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss_inpaint`, and `targets` and `predictions` int64 `(R,)` of the masked patches."""
        image, ids_masked = self.normalize(batch["image"]), batch["ids_masked"]
        targets = self.tokenizer.tokens_of(image, self.encoder.patch_size).gather(1, ids_masked).flatten()
        rows = gather_tokens(self.encode(image, ids_masked), ids_masked).flatten(0, 1)
        loss, predictions = self.head.loss(rows, targets)
        return {"loss_inpaint": loss, "targets": targets, "predictions": predictions}

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a monitor looks at: `loss_inpaint` 0-dim, `targets` and `predictions` int64 `(R,)`."""
        return self._inpaint(batch)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss`, `loss_inpaint` (the same) and `token_accuracy`.

        Args:
            batch: `image` uint8 `(B, 3, H, W)`; `ids_masked` int64 `(B, K)`, row-major patch indices.
        """
        found = self._inpaint(batch)
        loss, accuracy = found["loss_inpaint"], token_accuracy(found["predictions"], found["targets"])
        return {"loss": loss, "loss_inpaint": loss, "token_accuracy": accuracy}
