"""The one ViT: pre-training feeds it a subset of the patches, detectors and segmentors take its maps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitmask_backbones.errors import UserError, check_choice, nearest
from splitmask_backbones.position import (
    FOURIER_CHANNELS,
    POSITION_KINDS,
    POSITION_RESIZES,
    attend_fused,
    attend_in_full,
    decomposed_bias,
    fourier_features,
    resize_pos_embed,
    sincos_pos_embed,
)
from splitmask_backbones.relative_bias import KINDS, bias_index, num_rows, relative_bias

if TYPE_CHECKING:
    from splitmask_backbones.load_report import LoadReport


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Returns the patches of an image, row by row: `(B, C, H, W) -> (B, H/p * W/p, C * p * p)`.

    The channels of a patch are ordered as the weight of a convolution: colour, row, column.
    """
    batch, channels, height, width = images.shape
    p = patch_size
    patches = images.reshape(batch, channels, height // p, p, width // p, p)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // p) * (width // p), channels * p * p)


def cells(pixels: int, size: int) -> int:
    """Returns how many cells of `size` pixels cover a side, `ceil(pixels / size)`.

    Without a negative number: a graph of ONNX divides towards zero, where Python rounds down.
    """
    return (pixels + size - 1) // size


def rows_of(ids: Tensor) -> Tensor:
    """Returns int64 `(B, 1)`, the row in the batch of each of `(B, K)`."""
    return torch.arange(ids.shape[0], device=ids.device)[:, None]


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Returns `tokens[b, ids[b]]`: `(B or 1, N, C)` and int64 `(B, K)` -> `(B, K, C)`."""
    tokens = tokens.expand(ids.shape[0], -1, -1)
    if torch.are_deterministic_algorithms_enabled():
        # The same by rows: on a GPU, the gradient of gather sorts all B * K * C places then, and this one B * K.
        return tokens[rows_of(ids), ids]
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[2]))


def _is_compiling() -> bool:
    """Returns whether torch.compile looks on, or may: torch before 2.3 does not say."""
    known = getattr(torch.compiler, "is_compiling", None)
    return known is None or known()


class PatchEmbed(nn.Module):
    """Projects patches to tokens. The weight is a convolution's, as in timm, applied as one matrix product."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Returns `(B, N, C)`, or `(B, K, C)`: with `ids_keep` the other patches are never touched."""
        patches = patchify(images, self.patch_size)
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Returns SDPA's attention, `(B, heads, N, D)` as its inputs, with a bias `(1, heads, N, N)` on the scores.

    Under bf16 on a CPU by its products one by one, as long as their N x N scores are small: forward and backward take
    0.6 (N = 1025) to 0.1 (N = 37) of the time of torch's fused kernel there (2.15).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= 1024:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens it is given, by SDPA, with optional decomposed relative positions."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool, rel_pos_size: tuple[int, int] | None, bias_rows: int = 0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        # BEiT's table of a block of its own; the encoder turns it into `bias`.
        self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_rows, num_heads)) if bias_rows else None
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = rel_pos_size is not None
        if rel_pos_size is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size[0] - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size[1] - 1, dim // num_heads))

    def forward(self, x: Tensor, grid_size: tuple[int, int], bias: Tensor | None = None) -> Tensor:
        """Returns `(B, N, C)`.

        Args:
            x: `(B, N, C)`.
            grid_size: `(H, W)`, used by decomposed relative positions only.
            bias: `(1, heads, N, N)`, added to the scores.
        """
        batch, num_tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, num_tokens, 3, self.num_heads, dim // self.num_heads)
        # Each (B, heads, N, D). Unbound where they lie: the gradient is put together in the order in which it is read.
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        if self.use_rel_pos:
            query = query.contiguous()  # three products read it
            attend = attend_in_full if x.device.type == "cpu" else attend_fused
            x = attend(query, key, value, *decomposed_bias(query, self.rel_pos_h, self.rel_pos_w, grid_size))
        else:
            x = _attend(query, key, value, None if bias is None else bias.to(query.dtype))
        return self.proj(x.transpose(1, 2).reshape(batch, num_tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, N, C)`."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT; BEiT, DINOv2)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x * gamma`."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drops the residual branch of a whole sample and scales the rest by `1 / (1 - rate)`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.drops = rate, rate > 0
        # Tensors, so that blocks of all rates are compiled once; on the CPU, where they count as numbers.
        self._rate, self._kept = (torch.tensor(value, device="cpu") for value in (rate, 1.0 - rate))

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` in evaluation, `x * keep / (1 - rate)` with one `keep` in {0, 1} per sample in training."""
        if not self.training or not self.drops:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self._rate
        return x * keep.to(x.dtype) / self._kept


class Block(nn.Module):
    """Pre-norm transformer block with global or windowed attention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        layer_norm_eps: float = 1e-6,
        window_size: int = 0,
        rel_pos_size: tuple[int, int] | None = None,
        layer_scale: float | None = None,
        bias_rows: int = 0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, rel_pos_size, bias_rows)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, grid_size: tuple[int, int] = (0, 0), bias: Tensor | None = None) -> Tensor:
        """Returns `(B, N, C)`; windows and relative positions need `grid_size` `(H, W)` with `H * W == N`.

        `bias` `(1, heads, N, N)`, or of a window's tokens, is added to the attention scores.
        """
        if self.window_size:
            attended = self._windowed_attention(self.norm1(x), grid_size, bias)
        else:
            attended = self.attn(self.norm1(x), grid_size, bias)
        x = x + self.drop_path(self.ls1(attended))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def _windowed_attention(self, x: Tensor, grid_size: tuple[int, int], bias: Tensor | None) -> Tensor:
        """Attention within windows; zeros pad at the bottom and right and take part in it, as in ViTDet."""
        size, (height, width), (batch, _, dim) = self.window_size, grid_size, x.shape
        rows, cols = cells(height, size), cells(width, size)
        x = F.pad(x.reshape(batch, height, width, dim), (0, 0, 0, cols * size - width, 0, rows * size - height))
        x = x.reshape(batch, rows, size, cols, size, dim).transpose(2, 3).reshape(-1, size * size, dim)
        x = self.attn(x, (size, size), bias)
        x = x.reshape(batch, rows, cols, size, size, dim).transpose(2, 3)
        x = x.reshape(batch, rows * size, cols * size, dim)[:, :height, :width]
        return x.reshape(batch, height * width, dim)


WHOLE = ("patch_size", "embed_dim", "depth", "num_heads", "num_registers", "window_size", "in_chans")
REAL = ("mlp_ratio", "drop_path_rate", "layer_norm_eps", "layer_scale")
FLAGS = ("use_class_token", "use_rel_pos", "final_norm", "norm_maps", "qkv_bias", "grad_checkpointing")
SEVERAL = ("img_size", "window_block_indexes", "rel_pos_grid", "out_indices")


def _plain(value: Any) -> Any:
    """Returns Python's own number or truth value for one of NumPy's, which JSON cannot hold; others as they are."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def check_types(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument of `VisionTransformer` that is no number, list of numbers, or truth value."""
    for name, value in arguments.items():
        if value is None and name in ("layer_scale", "rel_pos_grid", "out_indices"):
            continue
        if name in WHOLE and not isinstance(value, Integral):
            raise UserError(f"{name} must be a whole number, got {value!r}")
        if name in REAL and not isinstance(value, Real):
            raise UserError(f"{name} must be a number, got {value!r}")
        if name in FLAGS and value not in (True, False):
            raise UserError(f"{name} must be true or false, got {value!r}")
        single = name == "img_size" and isinstance(value, Integral)
        if name in SEVERAL and not single:
            several = isinstance(value, Iterable) and not isinstance(value, str)
            if not several or not all(isinstance(item, Integral) for item in value):
                raise UserError(f"{name} must be whole numbers in a list, got {value!r}")
            if name in ("img_size", "rel_pos_grid") and len(value) != 2:
                raise UserError(f"{name} must be two numbers, height and width, got {value!r}")


class VisionTransformer(nn.Module):
    """Plain ViT (Dosovitskiy et al.; SplitMask App. A) for images of any size.

    Images are padded with zeros at the bottom and right to a multiple of the patch size. Parameters are named as in
    timm. `config` holds every constructor argument.

    Args:
        img_size: pixels, an integer or `(H, W)`; sets the size of the learned tables only.
        patch_size: pixels.
        embed_dim: token width C, a multiple of `num_heads` (and of 4 with sin-cos positions).
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over `embed_dim`.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        use_class_token: puts one learned token in front.
        num_registers: learned tokens after the class token.
        positions: "learned", "sincos" (MAE's fixed table, counted in patches), "fourier" (XCiT's: sines and cosines
            relative to the image's size, through a learned projection) or "none".
        position_resize: "antialias" or "plain" bicubic for grids other than that of `img_size`.
        window_size: patches per side of the attention windows.
        window_block_indexes: blocks whose attention is windowed; the others are global.
        use_rel_pos: decomposed relative positions in every block, as ViTDet; the tables start at zero.
        rel_pos_grid: `(H, W)` in patches that the tables of global blocks are made for; by default that of `img_size`.
        relative_position_bias: BEiT's learned bias by offset: "none", "shared" by all blocks, or "per_block".
        layer_scale: initial value of a learned factor per channel on every residual branch; None for none.
        out_indices: blocks whose outputs `forward_maps` returns; the last one by default. Negative ones count back.
        final_norm: LayerNorm after the last block; without it `forward` returns the last block's output.
        norm_maps: apply the final norm to the maps as well.
        layer_norm_eps: epsilon of every LayerNorm.
        qkv_bias: bias of the query, key and value projection.
        in_chans: image channels.
        grad_checkpointing: recompute each block in the backward pass to save memory.

    Raises:
        ValueError: arguments that contradict each other.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        use_class_token: bool = False,
        num_registers: int = 0,
        positions: str = "learned",
        position_resize: str = "antialias",
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        use_rel_pos: bool = False,
        rel_pos_grid: Sequence[int] | None = None,
        relative_position_bias: str = "none",
        layer_scale: float | None = None,
        out_indices: Sequence[int] | None = None,
        final_norm: bool = True,
        norm_maps: bool = False,
        layer_norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        in_chans: int = 3,
        grad_checkpointing: bool = False,
    ) -> None:
        arguments = {name: _plain(value) for name, value in locals().items() if name not in ("self", "__class__")}
        check_types(arguments)
        super().__init__()
        sides: Any = (img_size, img_size) if isinstance(img_size, Integral) else img_size
        self.img_size = (int(sides[0]), int(sides[1]))
        taps = (depth - 1,) if out_indices is None or len(out_indices) == 0 else out_indices
        self.out_indices = tuple(int(i) + depth if i < 0 else int(i) for i in taps)
        self.window_block_indexes = tuple(int(i) for i in window_block_indexes)
        self.config: dict[str, Any] = arguments | {
            "img_size": list(self.img_size),
            "out_indices": list(self.out_indices),
            "window_block_indexes": list(self.window_block_indexes),
            "rel_pos_grid": None if rel_pos_grid is None else [int(side) for side in rel_pos_grid],
        }
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.positions, self.position_resize = positions, position_resize
        self.num_prefix_tokens = int(use_class_token) + num_registers
        self.window_size, self.use_rel_pos = window_size, use_rel_pos
        self.relative_position_bias = relative_position_bias
        self.norm_maps, self.grad_checkpointing = norm_maps, grad_checkpointing
        self._check_arguments(num_heads, final_norm)
        self.load_report: LoadReport | None = None  # set by load_encoder
        self.pyramid_state: dict[str, Tensor] = {}  # a pyramid that came with the weights, set by load_encoder

        self.grid_size = self.grid_of(*self.img_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if use_class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dim)) if num_registers else None
        num_positions = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        learned = positions == "learned"
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim)) if learned else None
        self.pos_proj = nn.Linear(FOURIER_CHANNELS, embed_dim) if positions == "fourier" else None
        windowed = set(self.window_block_indexes) if window_size else set()
        bias_rows = num_rows(self.grid_size, use_class_token)
        shared = relative_position_bias == "shared"
        rel_pos_sides = self.grid_size if rel_pos_grid is None else (int(rel_pos_grid[0]), int(rel_pos_grid[1]))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_rows, num_heads)) if shared else None
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias,
                drop_path_rate * i / max(depth - 1, 1),
                layer_norm_eps,
                window_size if i in windowed else 0,
                None if not use_rel_pos else (window_size, window_size) if i in windowed else rel_pos_sides,
                layer_scale,
                bias_rows if relative_position_bias == "per_block" else 0,
            )
            for i in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=layer_norm_eps) if final_norm else nn.Identity()
        self.reset_parameters()

    def _check_arguments(self, num_heads: int, final_norm: bool) -> None:
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "in_chans", "layer_norm_eps"):
            if not self.config[name] > 0:
                raise UserError(f"{name} must be above 0, got {self.config[name]}")
        if min(self.img_size) < 1:
            raise UserError(f"img_size must be at least 1 pixel, got {self.img_size}")
        if self.config["num_registers"] < 0 or self.window_size < 0:
            raise UserError(
                f"num_registers and window_size must be at least 0, got {self.config['num_registers']} "
                f"and {self.window_size}"
            )
        if not 0 <= self.config["drop_path_rate"] < 1:
            raise UserError(f"drop_path_rate must be in [0, 1), got {self.config['drop_path_rate']}")
        check_choice("positions", self.positions, POSITION_KINDS)
        check_choice("position_resize", self.position_resize, POSITION_RESIZES)
        check_choice("relative_position_bias", self.relative_position_bias, KINDS)
        if self.relative_position_bias != "none" and (self.use_rel_pos or self.config["num_registers"]):
            raise UserError("relative_position_bias excludes use_rel_pos and registers: BEiT has neither")
        if self.embed_dim % num_heads:
            raise UserError(f"embed_dim {self.embed_dim} must be a multiple of num_heads {num_heads}")
        if self.positions == "sincos" and self.embed_dim % 4:
            raise UserError(f"embed_dim {self.embed_dim} must be a multiple of 4 for sin-cos positions")
        for name, indexes in (("out_indices", self.out_indices), ("window_block_indexes", self.window_block_indexes)):
            if any(not 0 <= i < self.depth for i in indexes):
                raise UserError(f"{name} {indexes} must lie in 0..{self.depth - 1} for depth {self.depth}")
        if list(self.out_indices) != sorted(set(self.out_indices)):
            raise UserError(f"out_indices {self.out_indices} must increase")
        if (self.window_size and self.window_block_indexes or self.use_rel_pos) and self.num_prefix_tokens:
            raise UserError(
                f"windows and relative positions are defined for patches only, not for {self.num_prefix_tokens} prefix "
                "tokens: use use_class_token=False and num_registers=0 (load_encoder drops the tokens of a file)"
            )
        if self.window_block_indexes and not self.window_size:
            raise UserError(f"window_block_indexes {self.window_block_indexes} need a window_size above 0")
        if self.norm_maps and not final_norm:
            raise UserError("norm_maps=True needs final_norm=True")

    def reset_parameters(self) -> None:
        """Initialises with a normal of std 0.02 for matrices, tokens and positions (cut at +-2), zeros for biases.

        The paper names 0.02 alone, by way of BEiT. BEiT's own code cuts at one standard deviation (0.011 is left of the
        0.02), which is not done here, and divides the last matrices of block l by sqrt(2 l), which is an option of
        pre-training. The projection of "fourier" positions keeps torch's own initialisation, as in XCiT.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module is not self.pos_proj:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        blocks: Any = self.blocks
        tables = [block.attn.relative_position_bias_table for block in blocks]
        for parameter in (self.cls_token, self.reg_token, self.pos_embed, self.relative_position_bias_table, *tables):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Returns the grid `(ceil(H / p), ceil(W / p))` in patches of an image of `(H, W)` pixels."""
        return cells(height, self.patch_size), cells(width, self.patch_size)

    def position_table(self, grid_size: tuple[int, int]) -> Tensor | None:
        """Returns `(1, num_prefix_tokens + H * W, C)` for a grid `(H, W)`, or None without positions."""
        if self.pos_embed is not None:
            return resize_pos_embed(
                self.pos_embed, self.grid_size, grid_size, self.num_prefix_tokens, self.position_resize
            )
        if self.positions == "sincos":
            weight = self.patch_embed.proj.weight
            table = sincos_pos_embed(grid_size, self.embed_dim, self.num_prefix_tokens, weight.device)
            return table.to(weight.dtype)
        if self.pos_proj is not None:
            weight, bias = self.pos_proj.weight, self.pos_proj.bias
            # In float64, which autocast leaves alone, for the reason given in `embed`.
            table = F.linear(fourier_features(grid_size, weight.device), weight.double(), bias.double())
            return F.pad(table.to(weight.dtype), (0, 0, self.num_prefix_tokens, 0))[None]
        return None

    def embed(self, x: Tensor, ids_keep: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Returns the tokens that enter the first block, prefix first, and the grid `(H, W)` of the whole image."""
        if x.ndim != 4 or x.shape[1] != self.config["in_chans"]:
            raise UserError(f"images must be (B, {self.config['in_chans']}, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        grid_size = self.grid_of(height, width)
        pad_h, pad_w = grid_size[0] * self.patch_size - height, grid_size[1] * self.patch_size - width
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        tokens = self.patch_embed(x, ids_keep)
        table = self.position_table(grid_size)
        prefix = [t.expand(tokens.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if table is not None:
            # Under autocast the sum is float32, and so is the residual stream from here on: bf16 tokens would round
            # positions of 0.02 away.
            patch_table = table[:, self.num_prefix_tokens :]
            tokens = tokens + (patch_table if ids_keep is None else gather_tokens(patch_table, ids_keep))
            if prefix:
                prefix = [torch.cat(prefix, dim=1) + table[:, : self.num_prefix_tokens]]
        return torch.cat([*prefix, tokens], dim=1) if prefix else tokens, grid_size

    def _run_block(self, block: nn.Module, x: Tensor, grid_size: tuple[int, int], bias: Tensor | None) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, grid_size, bias, use_reentrant=False)
        return block(x, grid_size, bias)

    def _biases(self, grid_size: tuple[int, int]) -> list[Tensor | None]:
        """Returns each block's attention bias, made once for all that share table and grid."""
        if self.relative_position_bias == "none":
            return [None] * self.depth
        with_class_token = self.cls_token is not None
        indexes: dict[tuple[int, int], Tensor] = {}
        shared: dict[tuple[int, int], Tensor] = {}
        biases: list[Tensor | None] = []
        block: Any
        for block in self.blocks:
            grid = (block.window_size, block.window_size) if block.window_size else grid_size
            own = block.attn.relative_position_bias_table
            if own is None and grid in shared:
                biases.append(shared[grid])
                continue
            table: Any = self.relative_position_bias_table if own is None else own
            if grid not in indexes:
                indexes[grid] = bias_index(grid, with_class_token, table.device)
            bias = relative_bias(table, self.grid_size, grid, with_class_token, indexes[grid])
            if own is None:
                shared[grid] = bias
            biases.append(bias)
        return biases

    def forward(self, x: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Returns the tokens after the final norm, prefix first, patches row by row.

        Args:
            x: `(B, in_chans, H, W)`, any H and W.
            ids_keep: int64 `(B, K)`, row-major patch indices in `[0, N)`, prefix not counted: only these patches
                enter the encoder (after positions are added) and come out, in this order.

        Returns:
            `(B, num_prefix_tokens + N, C)`, or `(B, num_prefix_tokens + K, C)` with `ids_keep`.

        Raises:
            ValueError: images of another shape; `ids_keep` of a wrong dtype or shape, outside the grid (on a GPU its
                own error, which needs no waiting for it), or together with windows or relative positions.
        """
        if ids_keep is not None:
            self._check_ids(x, ids_keep)
        return self.encode(*self.embed(x, ids_keep))

    def encode(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Returns the tokens after all blocks and the final norm, from those of `embed`."""
        for block, bias in zip(self.blocks, self._biases(grid_size), strict=True):
            x = self._run_block(block, x, grid_size, bias)
        return self.norm(x)

    def _check_ids(self, x: Tensor, ids_keep: Tensor) -> None:
        relative = self.use_rel_pos or self.relative_position_bias != "none"
        if (self.window_size and self.window_block_indexes) or relative:
            raise UserError("ids_keep cannot be used with windows or relative positions: they need the whole grid")
        if ids_keep.dtype != torch.int64 or ids_keep.ndim != 2 or ids_keep.shape[0] != x.shape[0]:
            raise UserError(
                f"ids_keep must be int64 of shape (B, K) with B = {x.shape[0]}, "
                f"got {ids_keep.dtype} of shape {tuple(ids_keep.shape)}"
            )
        rows, columns = self.grid_of(*x.shape[-2:])
        if ids_keep.device.type == "cpu" and ids_keep.numel() and not _is_compiling():
            least, greatest = int(ids_keep.min()), int(ids_keep.max())
            if least < 0 or greatest >= rows * columns:
                wrong = least if least < 0 else greatest
                raise UserError(f"ids_keep must lie in 0..{rows * columns - 1}, the patches of the grid, got {wrong}")

    def forward_maps(self, x: Tensor, norm_maps: bool | None = None) -> list[Tensor]:
        """Returns the outputs of the blocks in `out_indices` as maps, without prefix tokens.

        Blocks after the last of `out_indices` are not run. Maps are taken before the final norm, as in ViTDet and
        BEiT, unless `norm_maps` (by default the constructor's) is true.

        Args:
            x: `(B, in_chans, H, W)`, any H and W.
            norm_maps: overrides the constructor's choice.

        Returns:
            One `(B, C, ceil(H / p), ceil(W / p))` for each of `out_indices`.
        """
        grid_size = self.grid_of(*x.shape[-2:])
        layers = [tokens[:, self.num_prefix_tokens :] for tokens in self.forward_layers(x, norm_maps)]
        # (B, N, C) -> (B, C, H, W)
        return [tokens.transpose(1, 2).reshape(x.shape[0], -1, *grid_size).contiguous() for tokens in layers]

    def forward_layers(self, x: Tensor, norm_maps: bool | None = None) -> list[Tensor]:
        """Returns the outputs of the blocks in `out_indices` as tokens: those of `forward_maps`, prefix tokens first.

        Args:
            x: `(B, in_chans, H, W)`, any H and W.
            norm_maps: whether they are taken after the final norm; by default the constructor's choice.

        Returns:
            One `(B, num_prefix_tokens + N, C)` for each of `out_indices`.
        """
        with_norm = self.norm_maps if norm_maps is None else norm_maps
        if with_norm and isinstance(self.norm, nn.Identity):
            raise UserError("norm_maps=True needs an encoder built with final_norm=True")
        x, grid_size = self.embed(x)
        layers = []
        biases = self._biases(grid_size)
        for i, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            x = self._run_block(block, x, grid_size, biases[i])
            if i in self.out_indices:
                layers.append(self.norm(x) if with_norm else x)
        return layers


ARGUMENTS = tuple(inspect.signature(VisionTransformer).parameters)


def check_arguments(overrides: Mapping[str, Any], others: Iterable[str] = ()) -> None:
    """Raises ValueError, with the nearest right name, for a key that is not an argument of `VisionTransformer`.

    Args:
        overrides: keyword arguments.
        others: names that the caller takes itself, to be proposed as well.
    """
    for name in overrides:
        if name not in ARGUMENTS:
            raise UserError(f"unknown encoder argument '{name}': {nearest(name, {*ARGUMENTS, *others})}")
