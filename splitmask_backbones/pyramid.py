"""Feature pyramids for a plain ViT: simple (ViTDet), tapped with an FPN (XCiT, SplitMask), the taps alone (BEiT)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.vit import VisionTransformer, cells

STRIDES = (4, 8, 16, 32)
PYRAMIDS = ("simple", "tapped", "taps")
NORMS = ("LN", "BN", "SyncBN", "none")


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of `(B, C, H, W)`."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, C, H, W)`."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes; on a CPU, where torch has no synchronised one, over its own.

    It calls torch's `SyncBatchNorm` and is none: DistributedDataParallel refuses a model that holds one on a CPU.
    """

    process_group = None  # all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        """Returns `(B, C, H, W)`."""
        if input.device.type == "cpu":
            return super().forward(input)
        return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]


def make_norm(norm: str, num_channels: int) -> nn.Module:
    """Returns the norm of a map `(B, C, H, W)`: "LN" over channels, "BN", "SyncBN" over all processes, or "none"."""
    check_choice("norm", norm, NORMS)
    kinds = {"LN": LayerNorm2d, "BN": nn.BatchNorm2d, "SyncBN": SyncBatchNorm}
    return kinds[norm](num_channels) if norm in kinds else nn.Identity()


def resample(dim: int, scale: float, keep_dim: bool, norm: str = "LN") -> tuple[nn.Sequential, int]:
    """Returns the layers that change a map's size by `scale` (a power of two), and their number of channels.

    Upsampling is by transposed convolutions, halving the channels each time unless `keep_dim`; downsampling by
    max-pooling that keeps an incomplete last row and column.
    """
    layers: list[nn.Module] = []
    for step in range(round(abs(math.log2(scale)))):
        if scale < 1:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            continue
        if step:
            layers += [make_norm(norm, dim), nn.GELU()]
        new_dim = dim if keep_dim else dim // 2
        layers.append(nn.ConvTranspose2d(dim, new_dim, 2, 2))
        dim = new_dim
    return nn.Sequential(*layers), dim


def crop_to_stride(x: Tensor, image_size: tuple[int, int], stride: int) -> Tensor:
    """Returns the `ceil(H / stride) x ceil(W / stride)` top-left part of a map of a padded image."""
    return x[..., : cells(image_size[0], stride), : cells(image_size[1], stride)]


class Pyramid(nn.Module):
    """What all pyramids share: arguments, strides, sizes, extra levels.

    Args:
        embed_dim: channels of the encoder's maps.
        patch_size: their stride in pixels.
        out_channels: channels of every level; `ResampledTaps` has `embed_dim` whatever is given.
        num_extra_levels: coarser levels at strides 64, 128, ...
        norm: "LN" (ViTDet's), "BN", "SyncBN" or "none".
        finest_stride: 4, or 8, 16, 32 where finer maps are not needed (RetinaNet).

    Attributes:
        out_channels: channels of every level.
        strides: pixels per cell of each map that is returned, fine to coarse.
        first: how many of STRIDES are omitted at the fine end; their layers do not exist.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 16,
        out_channels: int = 256,
        num_extra_levels: int = 0,
        norm: str = "LN",
        finest_stride: int = 4,
    ) -> None:
        super().__init__()
        check_choice("finest_stride", str(finest_stride), map(str, STRIDES))
        # A patch size that is not a power of two (14, say) is first resized to stride 16.
        self.base_stride = patch_size if patch_size in STRIDES else 16
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.num_extra_levels = num_extra_levels
        self.first = STRIDES.index(finest_stride)
        self.strides = tuple(STRIDES[0] * 2**i for i in range(self.first, len(STRIDES) + num_extra_levels))
        self._build(embed_dim, norm)

    def _build(self, embed_dim: int, norm: str) -> None:
        raise NotImplementedError

    def _each(self, make: Callable[[int], nn.Module]) -> nn.ModuleList:
        """Returns one module per stride; an omitted level keeps its place, so that the others keep their names."""
        return nn.ModuleList(make(stride) if i >= self.first else nn.Identity() for i, stride in enumerate(STRIDES))

    def at_base_stride(self, x: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Returns the encoder's map at `base_stride`: unchanged for patch sizes 4, 8, 16 and 32.

        Cell by cell where its centre lies in the image: the map covers whole patches, which may reach beyond what whole
        cells cover, and stretching one onto the other would move the last cells by most of a patch.
        """
        if self.patch_size == self.base_stride:
            return x
        more = cells(self.base_stride, self.patch_size)  # enough that the last cell is made
        if self.patch_size > self.base_stride:
            # Where the result had as many cells as there are patches, torch would copy them and leave the scale aside.
            enough = cells(self.base_stride, self.patch_size - self.base_stride)
            more = max(more, enough - min(x.shape[-2:]))
        x = torch.cat([x, x[..., -1:, :].expand(-1, -1, more, -1)], dim=-2)
        x = torch.cat([x, x[..., -1:].expand(-1, -1, -1, more)], dim=-1)
        scale = self.patch_size / self.base_stride
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False)
        return x[..., : cells(image_size[0], self.base_stride), : cells(image_size[1], self.base_stride)]

    def with_extra_levels(self, maps: list[Tensor]) -> list[Tensor]:
        """Appends maps at stride 64 and on: every second row and column of the one before, as detectron2's FPN."""
        for _ in range(self.num_extra_levels):
            maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return maps


class SimpleLevel(nn.Module):
    """One level of the simple feature pyramid: resample, 1x1 and 3x3 convolution, each with a norm."""

    def __init__(self, dim: int, scale: float, out_channels: int, norm: str) -> None:
        super().__init__()
        self.resample, dim = resample(dim, scale, keep_dim=False, norm=norm)
        bias = norm == "none"
        self.lateral = nn.Conv2d(dim, out_channels, 1, bias=bias)
        self.lateral_norm = make_norm(norm, out_channels)
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.output_norm = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, out_channels, scale * H, scale * W)`."""
        return self.output_norm(self.output(self.lateral_norm(self.lateral(self.resample(x)))))


class SimpleFeaturePyramid(Pyramid):
    """Strides 4, 8, 16, 32 from the last map alone (Li et al., ViTDet Sec. 3)."""

    def _build(self, embed_dim: int, norm: str) -> None:
        self.levels = self._each(
            lambda stride: SimpleLevel(embed_dim, self.base_stride / stride, self.out_channels, norm)
        )

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """Returns one `(B, out_channels, ceil(H / stride), ceil(W / stride))` per stride.

        Args:
            maps: the encoder's maps, the last one is used: `(B, embed_dim, ceil(H / p), ceil(W / p))`.
            image_size: `(H, W)` of the images in pixels.
        """
        x = self.at_base_stride(maps[-1], image_size)
        levels = list(zip(self.levels, STRIDES, strict=True))[self.first :]
        return self.with_extra_levels([crop_to_stride(level(x), image_size, stride) for level, stride in levels])


class ResampledTaps(Pyramid):
    """Four taps resampled to strides 4, 8, 16, 32 at the encoder's width, for heads with their own FPN (UPerHead).

    What XCiT's and BEiT's backbones hand over, and mmseg's `Feature2Pyramid`. The norm between the two transposed
    convolutions of stride 4 is by default a LayerNorm where theirs is a synchronised BatchNorm (`norm="SyncBN"`): it
    does not depend on the batch.
    """

    def _build(self, embed_dim: int, norm: str) -> None:
        self.out_channels = embed_dim
        self._build_resamples(embed_dim, norm)

    def _build_resamples(self, embed_dim: int, norm: str) -> None:
        self.resamples = self._each(lambda stride: resample(embed_dim, self.base_stride / stride, True, norm)[0])

    def _resampled(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        if len(maps) != len(STRIDES):
            raise UserError(f"this pyramid needs {len(STRIDES)} maps, got {len(maps)}: set out_indices")
        parts = list(zip(maps, self.resamples, STRIDES, strict=True))[self.first :]
        resized = [layers(self.at_base_stride(x, image_size)) for x, layers, _ in parts]
        return [crop_to_stride(x, image_size, part[2]) for x, part in zip(resized, parts, strict=True)]

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """Returns one `(B, out_channels, ceil(H / stride), ceil(W / stride))` per stride.

        Args:
            maps: the encoder's four maps in order of depth, each `(B, embed_dim, ceil(H / p), ceil(W / p))`.
            image_size: `(H, W)` of the images in pixels.
        """
        return self.with_extra_levels(self._resampled(maps, image_size))


class TappedPyramid(ResampledTaps):
    """The resampled taps under an FPN, for detectors (XCiT; SplitMask App. A)."""

    def _build(self, embed_dim: int, norm: str) -> None:
        self._build_resamples(embed_dim, norm)
        self.laterals = self._each(lambda _: nn.Conv2d(embed_dim, self.out_channels, 1))
        self.outputs = self._each(lambda _: nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1))

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """Returns one `(B, out_channels, ceil(H / stride), ceil(W / stride))` per stride; arguments as above."""
        taps = self._resampled(maps, image_size)
        laterals = [conv(x) for conv, x in zip(self.laterals[self.first :], taps, strict=True)]
        for i in range(len(laterals) - 2, -1, -1):  # top-down
            above = F.interpolate(laterals[i + 1], scale_factor=2.0, mode="nearest")
            laterals[i] = laterals[i] + above[..., : laterals[i].shape[-2], : laterals[i].shape[-1]]
        return self.with_extra_levels([conv(x) for conv, x in zip(self.outputs[self.first :], laterals, strict=True)])


def tap_indices(depth: int) -> tuple[int, int, int, int]:
    """Returns the four taps at 1/3, 1/2, 2/3 and all of the depth: after blocks 4, 6, 8, 12 of 12 (XCiT).

    Raises:
        ValueError: fewer than four blocks.
    """
    if depth < len(STRIDES):
        raise UserError(f"taps need an encoder of at least 4 blocks, got {depth}: use pyramid='simple'")
    third, half = max(1, depth // 3), max(2, depth // 2)
    return third - 1, half - 1, max(half, 2 * depth // 3 - 1), depth - 1


def build_pyramid(
    kind: str,
    encoder: VisionTransformer,
    out_channels: int = 256,
    num_extra_levels: int = 0,
    norm: str = "LN",
    finest_stride: int = 4,
) -> Pyramid:
    """Returns the pyramid `kind` ("simple", "tapped" or "taps") that fits the encoder; the rest as `Pyramid`.

    Raises:
        ValueError: unknown kind, norm or stride.
    """
    check_choice("pyramid", kind, PYRAMIDS)
    cls: type[Pyramid] = {"simple": SimpleFeaturePyramid, "tapped": TappedPyramid, "taps": ResampledTaps}[kind]
    pyramid = cls(encoder.embed_dim, encoder.patch_size, out_channels, num_extra_levels, norm, finest_stride)
    _load_pyramid(pyramid, encoder)
    return pyramid


def _load_pyramid(pyramid: Pyramid, encoder: VisionTransformer) -> None:
    """Loads the pyramid that came with the encoder's weights, where it has this form; the report says which."""
    given, own = encoder.pyramid_state, pyramid.state_dict()
    if not given or encoder.load_report is None:
        return
    fits = all(name in given and given[name].shape == value.shape for name, value in own.items())
    if fits:
        pyramid.load_state_dict({name: given[name] for name in own}, strict=True)
        encoder.load_report.loaded += [f"pyramid.{name}" for name in own]
    else:
        encoder.load_report.dropped["pyramid.*"] = "of another form than this pyramid"
