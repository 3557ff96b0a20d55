"""SplitMask: split the patches in two, inpaint each half from the other, match the two descriptors (Sec. 4)."""

import torch
from torch import Tensor, nn

from pretrain.data.pixel_norm import PixelNorm
from pretrain.methods.base import CachedGradient, Method
from pretrain.methods.branch_colors import colors, jitter_colors
from pretrain.methods.losses import TokenHead, info_nce, token_accuracy
from pretrain.methods.swaps import fixed_cycle, swap_contents
from pretrain.tokenizers.codebook import ImageTokenizer
from splitmask_backbones.errors import UserError
from splitmask_backbones.position import sincos_pos_embed
from splitmask_backbones.vit import Block, VisionTransformer, gather_tokens, rows_of


def complement(ids: Tensor, num_patches: int) -> Tensor:
    """Returns the patch indices that are not in `ids`, ascending: int64 `(B, K) -> (B, N - K)`."""
    seen = torch.zeros(ids.shape[0], num_patches, dtype=torch.int8, device=ids.device).scatter_(1, ids, 1)
    return seen.argsort(dim=1, stable=True)[:, : num_patches - ids.shape[1]]


class Decoder(nn.Module):
    """Transformer layers at the encoder's width, shared by both branches (App. A, Fig. 1).

    Its input is the encoder's output at observed positions and a learned mask token elsewhere, with positions added.
    Ours: the positions are a learned table of the decoder's own, and a LayerNorm follows the last layer. The table
    begins as MAE's sines and cosines (RMS 0.71), where the paper names nothing: it is added to tokens of RMS 1, beside
    which a truncated normal of std 0.02 is next to nothing for hundreds of steps.

    Args:
        embed_dim: C.
        num_heads: attention heads, the encoder's.
        depth: layers; 2 in the paper.
        grid_size: `(H, W)` in patches; N = H * W.
        layer_norm_eps: the encoder's.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, depth: int, grid_size: tuple[int, int], layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_pos_embed(grid_size, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, layer_norm_eps=layer_norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Returns `(B, N, C)` for all positions, from encoder outputs `(B, K, C)` at the positions int64 `(B, K)`."""
        batch, num_patches = tokens.shape[0], self.pos_embed.shape[1]
        x = self.mask_token.expand(batch, num_patches, -1)
        if torch.are_deterministic_algorithms_enabled():  # as in `gather_tokens`
            x = x.index_put((rows_of(ids), ids), tokens.to(x.dtype))
        else:
            x = x.scatter(1, ids[..., None].expand(-1, -1, tokens.shape[2]), tokens.to(x.dtype))
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class SplitMask(Method):
    """The method as a module: `forward(batch)` returns the losses as named 0-dim tensors.

    Both branches go through the encoder in one call, stacked on the batch axis.

    Args:
        encoder: with a final norm, `img_size` that of the crops.
        tokenizer: gives the target token ids; its codebook sets the size of the head. Unused without inpainting.
        decoder_depth: decoder layers.
        inpaint_weight: weight of the inpainting loss; 0 switches it off, and there is no head.
        match_weight: weight of the matching loss; 0 switches it off. 1:1 is ours.
        temperature: tau of the matching loss.
        branch_jitter: strength of `jitter_colors` in training, for each branch on its own; unused without matching.
            The token ids stay those of the image as it is.
        prior: `(V,)` of `token_prior`, the bias that the head begins with; zeros without.

    Raises:
        ValueError: both losses are off.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        tokenizer: ImageTokenizer | None,
        decoder_depth: int = 2,
        inpaint_weight: float = 1.0,
        match_weight: float = 1.0,
        temperature: float = 0.2,
        branch_jitter: float = 0.0,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        if inpaint_weight == 0 and match_weight == 0:
            raise UserError("--inpaint-weight 0 with --match-weight 0 leaves nothing to learn: set one above 0")
        self.encoder = encoder
        config = encoder.config
        self.decoder = Decoder(
            encoder.embed_dim, config["num_heads"], decoder_depth, encoder.grid_size, config["layer_norm_eps"]
        )
        self.inpaint_weight, self.match_weight, self.temperature = inpaint_weight, match_weight, temperature
        self.branch_jitter = branch_jitter if match_weight else 0.0
        self.compares_images = match_weight > 0
        self.tokenizer: ImageTokenizer | None = None
        self.head: TokenHead | None = None
        if inpaint_weight:
            if tokenizer is None:
                raise UserError("inpainting needs a tokenizer")
            self.tokenizer = tokenizer
            self.head = TokenHead(encoder.embed_dim, tokenizer.vocab_size, prior)
        self.normalize = PixelNorm()

    def encode(self, image: Tensor, ids: Tensor) -> Tensor:
        """Returns the tokens of observed patches: normalised `(B, 3, H, W)`, int64 `(B, K)` -> `(B, K, C)`."""
        return self.encoder(image, ids)[:, self.encoder.num_prefix_tokens :]

    def decode(self, image: Tensor, ids: Tensor) -> Tensor:
        """Returns decoder outputs for all positions: normalised `(B, 3, H, W)`, int64 `(B, K)` -> `(B, N, C)`."""
        return self.decoder(self.encode(image, ids), ids)

    def _inpaint(self, image: Tensor, ids: Tensor, decoded: Tensor, order: Tensor | None = None) -> dict[str, Tensor]:
        """Returns `loss_inpaint`, and `targets` and `predictions` int64 `(R,)` of the patches that are not in `ids`.

        With `order`, the answer for the i-th of them is that for the `order[i]`-th. Nothing without inpainting.
        """
        if self.tokenizer is None or self.head is None:
            return {}
        tokens = self.tokenizer.tokens_of(image, self.encoder.patch_size).repeat(2, 1)  # (2B, N)
        hidden = complement(ids, tokens.shape[1])
        targets = tokens.gather(1, hidden).flatten()
        answers = gather_tokens(decoded, hidden if order is None else hidden[:, order])
        loss, predictions = self.head.loss(answers.flatten(0, 1), targets)
        return {"loss_inpaint": loss, "targets": targets, "predictions": predictions}

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a monitor looks at: of both branches, and with inpainting more.

        `descriptor_a`, `descriptor_b` `(B, C)`; `color_a`, `color_b`, the `colors` of what each sees;
        `loss_inpaint` 0-dim, the same with each crop's answers in each other's hidden places (`loss_swapped_answers`)
        and with the contents of its observed patches in each other's places (`loss_swapped_contents`), and `targets`
        and `predictions` int64 `(R,)`. Changes nothing and waits for no other process.
        """
        image, ids = self.normalize(batch["image"]), torch.cat([batch["ids_a"], batch["ids_b"]])
        branches = torch.cat([image, image])
        decoded = self.decode(branches, ids)
        descriptor_a, descriptor_b = decoded.mean(dim=1).chunk(2)
        color_a, color_b = (colors(image, batch[f"ids_{branch}"], self.encoder.patch_size) for branch in "ab")
        seen = {"descriptor_a": descriptor_a, "descriptor_b": descriptor_b, "color_a": color_a, "color_b": color_b}
        if found := self._inpaint(image, ids, decoded):
            order = fixed_cycle(decoded.shape[1] - ids.shape[1], ids.device)
            swapped = self.decode(swap_contents(branches, ids, self.encoder.patch_size), ids)
            seen |= {
                **found,
                "loss_swapped_answers": self._inpaint(image, ids, decoded, order)["loss_inpaint"],
                "loss_swapped_contents": self._inpaint(image, ids, swapped)["loss_inpaint"],
            }
        return seen

    def _decoded(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the normalised image; of both branches, A first, the indices `(2B, K)` and outputs `(2B, N, C)`."""
        image = self.normalize(batch["image"])
        ids = torch.cat([batch["ids_a"], batch["ids_b"]])
        branches = torch.cat([image, image])  # A first
        if self.training and self.branch_jitter:
            branches = jitter_colors(branches, self.branch_jitter)
        return image, ids, self.decode(branches, ids)

    def represent(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the descriptors `(2B, C)` of both branches, A first."""
        return self._decoded(batch)[2].mean(dim=1).float()

    def cache_gradients(self, representations: list[Tensor]) -> list[CachedGradient]:
        """Returns loss and gradients of matching among all images of the step, over all processes."""
        leaves = [descriptors.detach().requires_grad_() for descriptors in representations]
        with torch.enable_grad():
            a, b = (torch.cat(part) for part in zip(*(leaf.chunk(2) for leaf in leaves), strict=True))
            loss = info_nce(a, b, self.temperature)
            loss.backward()
        # Each micro-batch's loss counts as one of their mean.
        gradients = (len(leaves) * leaf.grad for leaf in leaves if leaf.grad is not None)
        return [CachedGradient(loss.detach(), gradient) for gradient in gradients]

    def forward(self, batch: dict[str, Tensor], cached: CachedGradient | None = None) -> dict[str, Tensor]:
        """Returns `loss`, and of `loss_inpaint`, `loss_match`, `token_accuracy` those that are switched on.

        Args:
            batch: `image` uint8 `(B, 3, H, W)`; `ids_a`, `ids_b` int64 `(B, K)`, disjoint row-major patch indices.
            cached: of `cache_gradients`; `loss_match` then is that of all images of the step, and its gradient by the
                descriptors of this batch is given. Without, the batch is all there is (over all processes).
        """
        image, ids, decoded = self._decoded(batch)
        metrics: dict[str, Tensor] = {}
        loss = torch.zeros((), device=image.device)
        if found := self._inpaint(image, ids, decoded):
            metrics["loss_inpaint"] = found["loss_inpaint"]
            metrics["token_accuracy"] = token_accuracy(found["predictions"], found["targets"])
            loss = loss + self.inpaint_weight * metrics["loss_inpaint"]
        if self.match_weight:
            descriptors = decoded.mean(dim=1)
            if cached is None:
                descriptor_a, descriptor_b = descriptors.chunk(2)
                metrics["loss_match"] = info_nce(descriptor_a, descriptor_b, self.temperature)
            else:
                with torch.autocast(image.device.type, enabled=False):
                    towards = (descriptors.float() * cached.gradient).sum()
                    metrics["loss_match"] = cached.value + towards - towards.detach()
            loss = loss + self.match_weight * metrics["loss_match"]
        return {"loss": loss, **metrics}
