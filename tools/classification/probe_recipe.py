"""Every value that decides what a probe measures. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.training.options import PRECISIONS
from pretrain.training.recipe import ABOVE_ZERO, CheckedRecipe, value
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from tools.frozen import POOLS

MIN_STEPS = 1000
"""Steps of the linear probes where `--epochs` of few images would make fewer."""


@dataclass(frozen=True)
class ProbeRecipe(CheckedRecipe):
    """kNN as DINO evaluates it, and linear probes. Ours, as the paper does not describe the probes of its Fig. 2:
    features of the center crop, without augmentation, and AdamW instead of a search over learning rates."""

    model: str = value("vit_small", "encoder of --weights none; a weights file decides itself", choices=tuple(ENCODERS))
    layers: str = value("all", "blocks to probe, from 0, with commas between, or all")
    pool: str = value(
        "mean", "of the patch tokens; or the class token after the final norm, as DINO and DeiT use it", choices=POOLS
    )
    img_size: int = value(0, "side of the center crop in pixels; 0 for that of the weights", low=0, high=4096)
    test_crop: float = value(0.875, "side of the center crop over the resized short side", low=0.01, high=1)
    knn: int = value(20, "nearest neighbours that vote; 0 for no kNN", low=0)
    temperature: float = value(0.07, "of the neighbours' votes", low=0.001, high=1000)
    linear: bool = value(True, "train linear probes")
    epochs: int | None = value(100, f"epochs of the linear probes, at least {MIN_STEPS} steps", low=1)
    steps: int | None = value(None, "steps of the linear probes, in place of --epochs", low=1)
    batch_size: int = value(1024, "images per step; all where there are fewer", low=1)
    lr: float = value(1e-3, "peak learning rate of AdamW; follows --batch-size linearly unless given", low=ABOVE_ZERO)
    weight_decay: float = value(0.0, "of the linear probes", low=0)
    seed: int = value(0, "seed of everything random", low=0, high=2**62)
    precision: str = value("32", "of the features; bf16 is mixed precision", choices=PRECISIONS)

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot work, naming option and remedy."""
        super().__post_init__()
        if not self.knn and not self.linear:
            raise UserError("--knn 0 together with --linear false leaves nothing to measure")
        if self.layers != "all" and not all(word.strip().isdecimal() for word in self.layers.split(",")):
            raise UserError(f"--layers {self.layers} must be all, or numbers of blocks with commas between: 0,5,11")

    def indices(self, depth: int) -> tuple[int, ...]:
        """Returns the blocks to probe of an encoder of `depth` blocks, in order.

        Raises:
            ValueError: a block that the encoder does not have.
        """
        if self.layers == "all":
            return tuple(range(depth))
        chosen = sorted({int(word) for word in self.layers.split(",")})
        if chosen[-1] >= depth:
            raise UserError(f"--layers {self.layers}: the encoder has blocks 0 to {depth - 1}")
        return tuple(chosen)

    def linear_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps of the linear probes."""
        planned = self.total_steps(steps_per_epoch)
        return planned if self.steps is not None else max(planned, MIN_STEPS)
