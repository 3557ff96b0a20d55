"""Every value of a detection run as one validated, frozen dataclass, whatever engine runs it. Free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pretrain.training.options import PRECISIONS
from pretrain.training.recipe import ABOVE_ZERO, CheckedRecipe, parse_field, value
from pretrain.training.schedule import warmup_cosine, warmup_step
from splitmask_backbones.errors import UserError, nearest
from splitmask_backbones.registry import ENCODERS


@dataclass(frozen=True)
class DetRecipe(CheckedRecipe):
    """Every value that decides what fine-tuning computes; by default SplitMask's COCO protocol (Swin's values)."""

    # model
    encoder: str | None = value(
        "vit_small", "encoder, must be that of --weights; none takes that of the file", choices=tuple(ENCODERS)
    )
    embed_dim: int | None = value(None, "its width from random init, in place of its own", low=1)
    depth: int | None = value(None, "its blocks from random init, in place of its own", low=1)
    pyramid: str = value("simple", "feature pyramid", choices=("simple", "tapped"))
    out_channels: int = value(256, "channels of the pyramid", low=1)
    positions: str | None = value(
        None, "replaces the encoder's positions", choices=("learned", "sincos", "fourier", "none")
    )
    drop_path: float = value(0.1, "stochastic depth of the encoder", low=0, high=0.99)
    window_size: int = value(0, "patches per side of the windows of windowed blocks", low=0)
    window_block_indexes: tuple[int, ...] = value((), "blocks with windowed attention, the others are global", low=0)
    use_rel_pos: bool = value(False, "decomposed relative positions (ViTDet)")
    grad_checkpointing: bool = value(False, "recompute blocks in the backward pass to save memory")
    pyramid_norm: str = value("LN", "norm of the pyramid", choices=("LN", "BN", "SyncBN", "none"))
    anchor_sizes: tuple[int, ...] = value((32, 64, 128, 256, 512), "pixels, one per level (strides 4 to 64)", low=1)
    aspect_ratios: tuple[float, ...] = value((0.5, 1.0, 2.0), "height over width of the anchors", low=ABOVE_ZERO)
    masks: bool = value(True, "false: boxes alone, Faster R-CNN without a mask head; objects need no polygons")
    cascade: bool = value(False, "Cascade R-CNN's three box heads; needs the detectron2 engine")
    rpn_convs: int = value(1, "convolutions of the RPN; ViTDet has 2", low=1)
    box_head: str = value("2fc", "4conv1fc is ViTDet's", choices=("2fc", "4conv1fc"))
    box_head_width: int = value(1024, "width of its fully connected layers", low=1)
    mask_head_convs: int = value(4, "convolutions of the mask head", low=1)
    mask_head_width: int = value(256, "their channels", low=1)
    mask_head_norm: str = value("none", "their norm; ViTDet has LN", choices=("none", "LN"))
    # proposals and detections
    rpn_pre_nms_train: int = value(2000, "proposals per level before NMS in training", low=1)
    rpn_post_nms_train: int = value(1000, "proposals per image after NMS in training", low=1)
    rpn_pre_nms_test: int = value(1000, "proposals per level before NMS in evaluation", low=1)
    rpn_post_nms_test: int = value(1000, "proposals per image after NMS in evaluation", low=1)
    rpn_batch: int = value(256, "anchors per image in the RPN's loss", low=1)
    rois_per_image: int = value(512, "RoIs per image in the heads' losses", low=1)
    roi_positive_fraction: float = value(0.25, "largest share of them on objects", low=ABOVE_ZERO, high=1)
    score_threshold: float = value(0.05, "detections below it are dropped", low=0, high=1)
    nms_threshold: float = value(0.5, "IoU above which the weaker detection is dropped", low=ABOVE_ZERO, high=1)
    detections_per_image: int = value(100, "largest number, also of the AP (COCO: 100)", low=1)
    # images
    img_size: int = value(800, "pixels: the square of 'lsj', the short side of 'multiscale'", low=16, high=8192)
    augment: str = value("multiscale", "large-scale jitter or multi-scale", choices=("lsj", "multiscale"))
    square_pad: bool = value(False, "'lsj' pads to its square in evaluation, too (ViTDet)")
    scale_range: tuple[float, ...] = value((0.6, 1.0), "random factor on the size of --img-size", low=0.01, high=10)
    max_long_side: float = value(1333 / 800, "longest side over img_size in 'multiscale'", low=1)
    crop: float = value(0.0, "probability that 'multiscale' resizes, crops and resizes again (DETR)", low=0, high=1)
    crop_scales: tuple[float, ...] = value((0.5, 0.625, 0.75), "short side before the crop over img_size", low=0.01)
    crop_range: tuple[float, ...] = value((0.48, 0.75), "random side of the crop over img_size", low=0.01)
    flip: float = value(0.5, "probability of a horizontal flip", low=0, high=1)
    labels: float = value(1.0, "share of the training images that is used, drawn by seed", low=ABOVE_ZERO, high=1)
    # optimisation
    batch_size: int = value(16, "images per step over all processes and micro-batches", low=1)
    accumulate: int = value(1, "micro-batches per step", low=1)
    epochs: int | None = value(36, "epochs of floor(images / batch) steps", low=1)
    steps: int | None = value(None, "steps of the whole run, in place of epochs", low=1)
    lr: float = value(1e-4, "peak learning rate of AdamW at this batch_size", low=ABOVE_ZERO)
    layer_decay: float = value(1.0, "factor per layer of the encoder on the lr; 1 for none", low=0.01, high=1)
    weight_decay: float = value(0.05, "none on 1-D parameters and positions", low=0)
    beta2: float = value(0.999, "AdamW's second beta", low=0, high=0.999999)
    clip_grad: float | None = value(None, "largest gradient norm", low=ABOVE_ZERO)
    schedule: str = value("step", "decay of the lr after the warm-up", choices=("step", "cosine"))
    milestones: tuple[float, ...] = value(
        (27 / 36, 33 / 36), "shares of the run after which 'step' divides by 10", low=0, high=1
    )
    end_lr_factor: float = value(0.0, "last lr of 'cosine' over the peak", low=0, high=1)
    warmup_fraction: float = value(0.002, "share of the steps that warm up linearly", low=0, high=1)
    ema: float | None = value(None, "decay of the average of weights that is evaluated and kept", low=0, high=1)
    eval_every: int | None = value(None, "steps between evaluations; the best detector is kept", low=1)
    precision: str = value("32", "bf16 is mixed precision", choices=PRECISIONS)
    seed: int = value(0, "seed of everything random", low=0, high=2**62)

    def __post_init__(self) -> None:
        """Raises ValueError for a value of a wrong type or one that cannot work, naming field and remedy."""
        super().__post_init__()
        if len(self.anchor_sizes) != 5:
            raise UserError(f"anchor_sizes {self.anchor_sizes} must hold 5 sizes, one per level")
        if not self.aspect_ratios:
            raise UserError("aspect_ratios must hold at least one ratio, such as 1.0")
        for name in ("scale_range", "crop_range"):
            given = getattr(self, name)
            if len(given) != 2 or given[0] > given[1]:
                raise UserError(f"{name} {given} must be two factors, the smaller one first: 0.8,1.25")
        if not self.crop_scales:
            raise UserError("crop_scales must hold at least one factor, such as 0.5")
        if self.crop and self.augment != "multiscale":
            raise UserError(f"crop={self.crop} needs augment=multiscale: 'lsj' crops by itself")
        if self.square_pad and self.augment != "lsj":
            raise UserError("square_pad=true needs augment=lsj: 'multiscale' trains on no square")
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones {self.milestones} must increase")
        if bool(self.window_size) != bool(self.window_block_indexes):
            raise UserError(
                f"window_size={self.window_size} and window_block_indexes={self.window_block_indexes} go together: "
                "give both, or neither"
            )
        if self.batch_size % self.accumulate:
            raise UserError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")

    @staticmethod
    def shown(name: str, given: Any) -> str:
        """Returns how a user gives a value: `name=value`."""
        return f"{name}={given!r}"

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Returns the factor on the peak lr at a step (0-based) of a run of `total_steps`."""
        warmup_steps = round(self.warmup_fraction * total_steps)
        if self.schedule == "step":
            return warmup_step(step, [round(share * total_steps) for share in self.milestones], warmup_steps)
        return warmup_cosine(step, total_steps, warmup_steps, self.end_lr_factor)

    def encoder_arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of `VisionTransformer` that this recipe decides."""
        arguments: dict[str, Any] = {"img_size": self.img_size, "drop_path_rate": self.drop_path}
        if self.encoder is not None:
            arguments |= {"embed_dim": self.embed_dim} if self.embed_dim is not None else {}
            arguments |= {"depth": self.depth} if self.depth is not None else {}
        if self.positions is not None:
            arguments["positions"] = self.positions
        if self.grad_checkpointing:
            arguments["grad_checkpointing"] = True
        if self.window_size:
            arguments |= {"window_size": self.window_size, "window_block_indexes": self.window_block_indexes}
        if self.use_rel_pos:
            arguments["use_rel_pos"] = True
        if self.window_size or self.use_rel_pos:  # both are defined for patches only
            arguments |= {"use_class_token": False, "num_registers": 0}
        return arguments


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(DetRecipe)}


def check_field(name: str) -> None:
    """Raises ValueError, with the nearest right name, for a name that is not a recipe value."""
    if name not in FIELDS:
        raise UserError(f"unknown recipe value '{name}': {nearest(name, FIELDS)}")


def parse_value(name: str, text: str) -> Any:
    """Returns the value of field `name` that `text` of the command line stands for: "true", "0.8,1.25", "none", ...

    Raises:
        ValueError: unknown name, or text of another type.
    """
    check_field(name)
    return parse_field(FIELDS[name], text)
